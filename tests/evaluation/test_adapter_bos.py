"""What a model's own tokenizer puts before a text."""

import json
import shutil

import pytest

from inheritune_lit.errors import UserError
from inheritune_lit.evaluation.open_lm import Encoder
from inheritune_lit.tokenizer import Tokenizer


@pytest.mark.parametrize(("stated", "prefix"), [(None, [1]), (True, [1]), (False, [])])
def test_a_sentencepiece_model_gets_bos_unless_its_configuration_says_no(tokenizer_dir, tmp_path, stated, prefix):
    from transformers import LlamaTokenizer

    shutil.copy(tokenizer_dir / "tokenizer.model", tmp_path)
    if stated is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": stated}))
    tokenizer = Tokenizer(tmp_path)
    with_bos, without = Encoder(tokenizer, 400, "model"), Encoder(tokenizer, 400, "none")
    ids = tokenizer.encode("the cat")
    assert with_bos.encode("the cat") == prefix + ids
    assert with_bos.encode("the cat", add_prefix=False) == without.encode("the cat") == ids
    assert with_bos.empty_context == (prefix or [2])[0]
    assert without.empty_context == 2
    if stated is not None:  # transformers 4 and 5 differ where nothing is stated
        theirs = LlamaTokenizer.from_pretrained(tmp_path, add_bos_token=stated)
        assert theirs.encode("the cat")[:1] == (prefix or ids[:1])


@pytest.mark.parametrize("bos", ["none", "model"])
def test_announced_texts_get_the_same_ids(hf_checkpoint, bos):
    texts = ["the model", "", "<s>the model", "é"]
    announced, fresh = (Encoder(Tokenizer(hf_checkpoint), 600, bos) for _ in range(2))
    announced.announce(texts + texts)
    for text in texts:
        for add_prefix in (True, False):
            assert announced.encode(text, add_prefix) == fresh.encode(text, add_prefix)
    assert announced.encode("<s>the model").count(0) == 1


def test_a_tokenizer_without_eos_is_told(hf_checkpoint, tmp_path):
    shutil.copy(hf_checkpoint / "tokenizer.json", tmp_path)
    with pytest.raises(UserError, match=r"tokenizer.json defines no EOS token"):
        Encoder(Tokenizer(tmp_path), 600)
