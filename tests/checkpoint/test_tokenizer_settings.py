"""Every file that describes a tokenizer is believed as transformers' AutoTokenizer believes it, or refused by name."""

import base64
import json
import random
from array import array
from pathlib import Path

import pytest
import transformers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as FastTokenizer

from inheritune_lit.data.encoding import DocumentEncoder
from inheritune_lit.errors import UserError
from inheritune_lit.inherit.args import SliceArgs
from inheritune_lit.inherit.slice import slice_model
from inheritune_lit.tokenizer import Tokenizer, check_tokenizer

ADDED = {
    400: AddedToken("<|endoftext|>", special=True, normalized=False),
    401: AddedToken("zyxwv", special=False),
    402: AddedToken("<|end|>", special=True, normalized=False, rstrip=True),
    403: AddedToken("[X]", special=False, lstrip=True, single_word=True),
}
PARTS = [*ADDED.values(), "the", " the", "x", " ", "\n", "é", "tokens ", "</s>", "<s>", "<unk>", "zyx", "of", "<", "[X"]
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 499723\n"


def texts(count: int = 300) -> list[str]:
    rng = random.Random(0)
    made = ["".join(str(rng.choice(PARTS)) for _ in range(rng.randint(0, 9))) for _ in range(count)]
    # transformers 5 drops the first of several spaces before a text, which SentencePiece and transformers 4 keep.
    return [text.lstrip(" ") for text in made]


def write(folder: Path, name: str, content: dict) -> None:
    (folder / f"{name}.json").write_text(json.dumps(content))


def fields(token: AddedToken) -> dict:
    return {
        name: getattr(token, name) for name in ["content", "single_word", "lstrip", "rstrip", "normalized", "special"]
    }


DECODER = {"added_tokens_decoder": {str(number): fields(token) for number, token in ADDED.items()}}
PHI3 = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "<|endoftext|>", "unk_token": "<unk>"}
LISTED = {token.content: number for number, token in ADDED.items()}
FOLDERS = {
    "added_tokens_decoder": {"tokenizer_config": PHI3 | DECODER},
    "added_tokens.json": {"tokenizer_config": PHI3, "added_tokens": LISTED},
    "special_tokens_map.json": {
        "tokenizer_config": {"tokenizer_class": "LlamaTokenizer"},
        "special_tokens_map": {"eos_token": {"content": "<|endoftext|>"}},
        "added_tokens": LISTED,
    },
    "stale added_tokens.json": {"tokenizer_config": PHI3 | DECODER, "added_tokens": {"<|endoftext|>": 7}},
    "stale special_tokens_map.json": {"tokenizer_config": PHI3 | DECODER, "special_tokens_map": {"eos_token": "</s>"}},
    "stale config.json": {"tokenizer_config": PHI3 | DECODER, "config": {"model_type": "llama", "eos_token_id": 2}},
    "legacy": {"tokenizer_config": PHI3 | DECODER | {"legacy": True}},
    "no prefix": {"tokenizer_config": PHI3 | DECODER | {"add_prefix_space": False}},
    "no tokens": {"tokenizer_config": {"tokenizer_class": "LlamaTokenizer"}},
}


@pytest.fixture
def folder(tmp_path, tokenizer_dir):
    (tmp_path / "tokenizer.model").write_bytes((tokenizer_dir / "tokenizer.model").read_bytes())
    write(tmp_path, "config", {"model_type": "llama"})
    return tmp_path


@pytest.fixture
def json_folder(tmp_path):
    fast = FastTokenizer(models.BPE())
    fast.pre_tokenizer, fast.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    fast.train_from_iterator([Path(__file__).read_text()] * 3, trainer)
    assert fast.get_vocab_size() == 400
    fast.save(str(tmp_path / "tokenizer.json"))
    write(tmp_path, "config", {"model_type": "llama"})
    return tmp_path


def expect_transformers(folder: Path, parsed: bool) -> Tokenizer:
    judge = transformers.AutoTokenizer.from_pretrained(folder)
    ours, packer = Tokenizer(folder, parsed), DocumentEncoder(folder, "uint16", parsed)
    expected = [judge.encode(text, add_special_tokens=False, split_special_tokens=not parsed) for text in texts()]
    assert ours.encode_batch(texts()) == expected
    packed = [array("H", ids or b"").tolist() for ids in packer.encode(texts())]
    assert packed == expected
    assert (ours.bos_id, ours.eos_id, ours.vocab_size) == (judge.bos_token_id, judge.eos_token_id, len(judge))
    return ours


@pytest.mark.parametrize("parsed", [True, False])
@pytest.mark.parametrize("kind", FOLDERS)
def test_files_beside_a_sentencepiece_model(folder, kind, parsed):
    for name, content in FOLDERS[kind].items():
        write(folder, name, content)
    ours = expect_transformers(folder, parsed)
    plain = Tokenizer(folder, parsed)
    if kind != "no tokens":
        assert plain.eos_id == 400 and plain.vocab_size == 404
        assert ours.decode(ours.encode("of zyxwv the")) == "of zyxwv the"
        assert ours.decode([400, *ours.encode("the")], skip_special_tokens=True) == "the"


@pytest.mark.parametrize("parsed", [True, False])
@pytest.mark.parametrize("kind", ["added_tokens_decoder", "added_tokens.json", "stale config.json"])
def test_files_beside_a_tokenizer_json(json_folder, kind, parsed):
    for name, content in FOLDERS[kind].items():
        write(json_folder, name, content)
    config = {key: value for key, value in FOLDERS[kind]["tokenizer_config"].items() if key[:3] not in ("bos", "unk")}
    write(json_folder, "tokenizer_config", config | {"tokenizer_class": "PreTrainedTokenizerFast"})
    assert expect_transformers(json_folder, parsed).eos_id == 400


def test_gpt2s_two_files(json_folder):
    content = json.loads((json_folder / "tokenizer.json").read_text())["model"]
    write(json_folder, "vocab", {**content["vocab"], "<|endoftext|>": 400})
    (json_folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in content["merges"]))
    (json_folder / "tokenizer.json").unlink()
    write(json_folder, "config", {"model_type": "gpt2"})
    write(json_folder, "tokenizer_config", {"tokenizer_class": "GPT2Tokenizer"})
    ours, judge = Tokenizer(json_folder, False), transformers.AutoTokenizer.from_pretrained(json_folder)
    expected = [judge.encode(text, split_special_tokens=True) for text in texts()]
    assert ours.encode_batch(texts()) == expected
    assert (ours.bos_id, ours.eos_id, ours.vocab_size) == (400, 400, len(judge))


def test_the_hash_follows_what_the_other_files_add(folder):
    hashes = {Tokenizer(folder).sha256()}
    for kind in ("no tokens", "added_tokens_decoder", "added_tokens.json", "no prefix"):
        for name, content in FOLDERS[kind].items():
            write(folder, name, content)
        hashes.add(Tokenizer(folder).sha256())
    assert len(hashes) == 4  # tokenizer.model alone, two ways of splitting at the same tokens, another prefix


@pytest.mark.parametrize("content", ["tiktoken", POINTER, "damaged", ""])
def test_a_model_file_of_another_kind(json_folder, content):
    if content == "tiktoken":
        content = "".join(f"{base64.b64encode(bytes([i])).decode()} {i}\n" for i in range(256))
    (json_folder / "tokenizer.model").write_text(content)
    expected = FastTokenizer.from_file(str(json_folder / "tokenizer.json"))
    ours = Tokenizer(json_folder)
    assert ours.encode("of the tokens") == expected.encode("of the tokens").ids
    (json_folder / "tokenizer.json").unlink()
    word = {"damaged": "copy it again", "": "copy it again", POINTER: "git lfs pull"}.get(content, "tiktoken")
    with pytest.raises(UserError, match=word) as caught:
        Tokenizer(json_folder)
    assert "\n" not in str(caught.value)


def test_another_vocabulary_beside_the_model(folder, json_folder, caplog):
    assert folder == json_folder
    assert Tokenizer(folder).path.name == "tokenizer.json"
    assert "different vocabularies" in caplog.text


CONTRADICTIONS = {
    "another id": {"tokenizer_config": PHI3 | {"added_tokens_decoder": {"405": fields(ADDED[400])}}},
    "id of a piece": {"tokenizer_config": PHI3 | {"added_tokens_decoder": {"300": fields(ADDED[400])}}},
    "one text, two ids": {"tokenizer_config": PHI3, "added_tokens": {"<|endoftext|>": 400, "</s>": 401}},
    "an unknown end": {"tokenizer_config": {"eos_token": "<|end|>"}},
    "an end that only the model's configuration has": {
        "generation_config": {},
        "config": {"eos_token_id": 400},
        "added_tokens": LISTED,
    },
    "another end in the generation's": {"generation_config": {"eos_token_id": [7, 8]}},
    "an end of another type": {"tokenizer_config": {"eos_token": 2}},
    "an id of another type": {"config": {"eos_token_id": "2"}},
    "added tokens of another type": {"added_tokens": {"<x>": "four"}},
    "a table of another type": {"tokenizer_config": {"added_tokens_decoder": []}},
    "a flag of another type": {"tokenizer_config": {"added_tokens_decoder": {"400": {"content": "x", "lstrip": 1}}}},
    "too many rows": {"tokenizer_config": PHI3 | DECODER},
}


@pytest.mark.parametrize("kind", CONTRADICTIONS)
def test_contradictions_are_refused_in_slice(make_llama, folder, tmp_path, kind):
    _, ref = make_llama(vocab_size=400, bos_token_id=1, eos_token_id=2)
    (ref / "tokenizer.model").write_bytes((folder / "tokenizer.model").read_bytes())
    slice_model(SliceArgs(str(ref), n=1, out_dir=tmp_path / "fine"))
    for name, content in CONTRADICTIONS[kind].items():
        before = json.loads((ref / "config.json").read_text()) if name == "config" else {}
        write(ref, name, before | content)
    with pytest.raises(UserError) as caught:
        slice_model(SliceArgs(str(ref), n=1, out_dir=tmp_path / "out"))
    assert "\n" not in str(caught.value)
    assert str(ref) in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_gap_in_tokenizer_json(json_folder):
    """tokenizers gives added tokens the next id, whatever the file says."""
    content = json.loads((json_folder / "tokenizer.json").read_text())
    content["added_tokens"] = [{"id": 410, **fields(ADDED[400])}]
    write(json_folder, "tokenizer", content)
    with pytest.raises(UserError, match=r"is id 410 in .*, but 400 by tokenizer.json"):
        Tokenizer(json_folder)


def test_a_padding_token_without_a_row(json_folder):
    write(json_folder, "tokenizer_config", {"added_tokens_decoder": {"400": fields(AddedToken("[PAD]", special=True))}})
    check_tokenizer(json_folder, 400)
    assert max(Tokenizer(json_folder, False).encode("a [PAD]")) < 400
    with pytest.raises(UserError, match="400 ids, but the model has 399 embeddings"):
        check_tokenizer(json_folder, 399)


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json"])
def test_pointers_are_not_copied(make_llama, json_folder, tmp_path, name):
    ref = make_llama(vocab_size=400)[1]
    (ref / "tokenizer.json").write_bytes((json_folder / "tokenizer.json").read_bytes())
    (ref / name).write_text(POINTER)
    with pytest.raises(UserError, match="git lfs pull"):
        slice_model(SliceArgs(str(ref), n=1, out_dir=tmp_path / "out"))
    assert not (tmp_path / "out").exists()
