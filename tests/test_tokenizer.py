"""Text to ids and back, against the libraries that define the tokenizers."""

import json
import shutil
from pathlib import Path

import pytest
import sentencepiece
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers

from inheritune_lit.errors import UserError
from inheritune_lit.tokenizer import Tokenizer

TEXTS = ["Hello  world", " leading space", "x = 1\n\n    return x", "naïve café ☕", ""]


@pytest.fixture
def sentencepiece_folder(tmp_path, tokenizer_dir):
    shutil.copyfile(tokenizer_dir / "tokenizer.model", tmp_path / "tokenizer.model")
    return tmp_path


@pytest.fixture
def json_folder(tmp_path):
    tokenizer = FastTokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<|end|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(Path(__file__).read_text().splitlines(), trainer)
    tokenizer.enable_truncation(4)  # as some published files do; it must not cut our documents
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<|end|>"}}))
    return tmp_path


def test_sentencepiece_ids(sentencepiece_folder):
    judge = sentencepiece.SentencePieceProcessor(model_file=str(sentencepiece_folder / "tokenizer.model"))
    ours = Tokenizer(sentencepiece_folder)
    assert ours.encode_batch(TEXTS) == [judge.encode(text) for text in TEXTS]
    assert (ours.bos_id, ours.eos_id, ours.vocab_size) == (1, 2, 400)
    assert [ours.decode(ours.encode(text)) for text in TEXTS] == TEXTS


def test_json_ids(json_folder):
    judge = FastTokenizer.from_file(str(json_folder / "tokenizer.json"))
    judge.no_truncation()
    ours = Tokenizer(json_folder)
    assert ours.encode_batch(TEXTS) == [judge.encode(text).ids for text in TEXTS]
    assert ours.eos_id == judge.token_to_id("<|end|>")
    assert ours.bos_id is None
    assert [ours.decode(ours.encode(text)) for text in TEXTS] == TEXTS


def test_eos_from_generation_config(json_folder):
    (json_folder / "tokenizer_config.json").unlink()
    (json_folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 8]}))
    assert Tokenizer(json_folder).eos_id == 7


def test_sentencepiece_wins_over_the_converted_file(sentencepiece_folder):
    """The conversion has the same vocabulary, and joins spaces in another way."""
    from transformers import LlamaTokenizer

    converted = LlamaTokenizer.from_pretrained(sentencepiece_folder)
    converted._tokenizer.save(str(sentencepiece_folder / "tokenizer.json"))
    judge = sentencepiece.SentencePieceProcessor(model_file=str(sentencepiece_folder / "tokenizer.model"))
    ours = Tokenizer(sentencepiece_folder)
    assert ours.path.name == "tokenizer.model"
    assert ours.encode_batch(TEXTS) == [judge.encode(text) for text in TEXTS]


def test_no_tokenizer(tmp_path):
    with pytest.raises(UserError, match="no tokenizer in"):
        Tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.model", "tokenizer.json"])
def test_damaged_tokenizer(tmp_path, name):
    (tmp_path / name).write_text("not a tokenizer")
    with pytest.raises(UserError, match=name):
        Tokenizer(tmp_path)
