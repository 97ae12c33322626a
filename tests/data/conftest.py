"""A small corpus in RedPajama's layout."""

import json
import random

import pytest

WORDS = ["the", "model", "learns", "from", "text", "def", "return", "\n", "", "naïve", "☕", "1234"]


def make_documents(count: int, seed: int) -> list[str]:
    """Texts of 20 to 400 words, all different."""
    draw = random.Random(seed)
    return [f"{seed}/{number} " + " ".join(draw.choices(WORDS, k=draw.randint(20, 400))) for number in range(count)]


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
