"""Fixtures for every test."""

import os
from pathlib import Path

import pytest
import sentencepiece


@pytest.fixture(scope="session")
def inheritune_data() -> Path:
    """Folder of real text, task rows and tokenizers, where ``INHERITUNE_DATA`` names one."""
    folder = os.environ.get("INHERITUNE_DATA")
    if not folder:
        pytest.skip("INHERITUNE_DATA is unset: this test wants real data")
    return Path(folder)


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory) -> Path:
    """A folder with a SentencePiece tokenizer of 400 pieces that loses nothing."""
    folder = tmp_path_factory.mktemp("tokenizer")
    with (folder / "tokenizer.model").open("wb") as model:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(Path(__file__).read_text().splitlines() * 4),
            model_writer=model,
            model_type="bpe",
            vocab_size=400,
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            minloglevel=2,
        )
    return folder
