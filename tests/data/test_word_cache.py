"""Ids from the word cache are SentencePiece's own, for models of every kind; others are not cut at all."""

import json
from array import array
from io import BytesIO
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from inheritune_lit.data import encoding as word_cache
from inheritune_lit.data.encoding import SPACE, UnbrokenText, WordCache

LLAMA = {
    "model_type": "bpe",
    "byte_fallback": True,
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
    "split_digits": True,
    "allow_whitespace_only_pieces": True,
}
KINDS = {
    "llama": LLAMA,
    "openllama v1": {"model_type": "bpe", "byte_fallback": True},  # nmt_nfkc, spaces collapsed
    "no dummy prefix": {**LLAMA, "add_dummy_prefix": False},
    "scripts mixed": {**LLAMA, "split_by_unicode_script": False, "split_by_number": False, "split_digits": False},
    "symbols": {**LLAMA, "user_defined_symbols": ["<sep>", "\n\n", "e("]},
}
UNCUT = {
    "unknown characters joined": {**LLAMA, "byte_fallback": False},
    "unigram": {**LLAMA, "model_type": "unigram"},
    "pieces over spaces": {**LLAMA, "split_by_whitespace": False},
    "symbol with a space": {**LLAMA, "user_defined_symbols": ["of the"]},
    "space behind": {**LLAMA, "treat_whitespace_as_suffix": True},
}
_TRAINING = (
    Path(__file__).read_text() + Path(word_cache.__file__).read_text() + "naïve café ½ ﬁ ² — “x” \u2019, of the " * 30
)


def train(folder: Path, **settings) -> Path:
    model = BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_TRAINING.splitlines()), model_writer=model, vocab_size=500, minloglevel=2, **settings
    )
    path = folder / "tokenizer.model"
    path.write_bytes(model.getvalue())
    return path


@pytest.fixture(scope="session")
def encoders(tmp_path_factory):
    """Our encoder and SentencePiece's own of each kind."""
    made = {}
    for name, kind in KINDS.items():
        path = train(tmp_path_factory.mktemp("kind"), **kind)
        made[name] = (
            WordCache.create(path.read_bytes(), "H"),
            sentencepiece.SentencePieceProcessor(model_file=str(path)),
        )
    return made


TEXTS = st.lists(
    st.sampled_from(
        [*"ab cd  \n\t.,()12²½ﬁé\u2019—“中文☕", SPACE, "return ", "of the ", "<sep>", "e(", "  ", "\n\n", "\r\n", "\0"]
    )
    | st.text(max_size=8),
    max_size=40,
).map("".join)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=150, deadline=None)
@given(text=TEXTS)
def test_ids_are_sentencepieces(encoders, kind, text):
    ours, theirs = encoders[kind]
    assert ours is not None
    assert array("H", ours.encode(text)).tolist() == theirs.encode(text)


def test_only_llamas_vocabulary_is_cut_at_punctuation(encoders):
    """The fine cut must be what the other tests tested, and the coarse one too."""
    assert {kind: ours._words.pattern == " *[^ ]+| +" for kind, (ours, _) in encoders.items()} == {
        "llama": False,
        "openllama v1": True,
        "no dummy prefix": False,
        "scripts mixed": True,
        "symbols": True,
    }


@pytest.mark.parametrize("kind", UNCUT)
def test_models_that_merge_over_spaces_are_left_alone(tmp_path, kind):
    assert WordCache.create(train(tmp_path, **UNCUT[kind]).read_bytes(), "H") is None


def test_long_texts_and_a_full_cache(encoders, monkeypatch):
    monkeypatch.setattr(word_cache, "_WINDOW", 100)
    monkeypatch.setattr(word_cache, "_GENERATION", 10)
    for ours, theirs in encoders.values():
        for text in (_TRAINING[:20_000], "x" * 500, " " * 500, " x" * 300, "\n" * 300):
            assert array("H", ours.encode(text)).tolist() == theirs.encode(text)


def test_unbroken_text_is_refused_beyond_a_limit(encoders, monkeypatch):
    monkeypatch.setattr(WordCache, "max_unbroken", 1000)
    ours, theirs = encoders["llama"]
    assert array("H", ours.encode("a " * 5000)).tolist() == theirs.encode("a " * 5000)
    with pytest.raises(UnbrokenText):
        ours.encode("fine " + "a" * 1001)


def test_real_text_with_llamas_tokenizer(inheritune_data):
    path = inheritune_data / "tokenizers" / "llama2" / "tokenizer.model"
    ours, theirs = WordCache.create(path.read_bytes(), "H"), sentencepiece.SentencePieceProcessor(model_file=str(path))
    for file in sorted((inheritune_data / "redpajama-sample").glob("*.jsonl")):
        if file.stat().st_size < 2_000_000:
            texts = [json.loads(line)["text"] for line in file.read_text(encoding="utf-8").splitlines()]
            for text, ids in zip(texts, theirs.encode(texts), strict=True):
                assert array("H", ours.encode(text)).tolist() == ids
