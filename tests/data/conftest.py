"""A small corpus in RedPajama's layout."""

import json
import logging

import pytest
from random_text import make_documents


@pytest.fixture(autouse=True)
def logged(caplog):
    """What the library logs, as the command shows it."""
    caplog.set_level(logging.INFO, logger="inheritune_lit")
    return caplog


@pytest.fixture(scope="session")
def documents() -> dict[str, list[str]]:
    """Texts of two domains."""
    return {"book": make_documents(40, 1), "c4": make_documents(160, 2)}


@pytest.fixture
def corpus(tmp_path, documents):
    """The documents as ``<domain>_sample.jsonl`` files."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for domain, texts in documents.items():
        rows = [json.dumps({"text": text, "meta": {"n": n}}) + "\n" for n, text in enumerate(texts)]
        (folder / f"{domain}_sample.jsonl").write_text("".join(rows))
    return folder


@pytest.fixture
def large_corpus(tmp_path):
    """Eight files that make a shard each, a few seconds of work: enough that nobody misses the middle."""
    texts, folder = make_documents(2000, 7), tmp_path / "large"
    folder.mkdir()
    for number in range(8):
        rows = [json.dumps({"text": f"{number} {text}"}) + "\n" for text in texts]
        (folder / f"d{number}.jsonl").write_text("".join(rows))
    return folder
