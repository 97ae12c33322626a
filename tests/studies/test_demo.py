"""The demo's corpus and task."""

import argparse
import json
import random

from inheritune_lit.studies.demo import ModelScores, conclusion, score_table
from inheritune_lit.studies.inputs import SHAPE, write_corpus, write_shape, write_task
from inheritune_lit.tokenizer import Tokenizer


def test_corpus_is_the_installed_library(tmp_path):
    characters = write_corpus(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "sources.jsonl").read_text().splitlines()]
    by_file = {row["meta"]["file"]: row["text"] for row in rows}
    with open(argparse.__file__, encoding="utf-8") as file:
        assert by_file["argparse.py"] == file.read()
    assert not any("site-packages" in name or "/test/" in f"/{name}" for name in by_file)
    assert characters > 2_000_000


def test_tokenizer_of_the_shape_loses_nothing(tmp_path):
    (tmp_path / "corpus").mkdir()
    (tmp_path / "shape").mkdir()
    text = "def f(x):\n    return  x + 1234567  # naïve ☕\n" * 200
    draw = random.Random(0)
    words = "\n".join("".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=8)) for _ in range(3000))
    (tmp_path / "corpus" / "a.jsonl").write_text(json.dumps({"text": text + words}) + "\n")
    write_shape(tmp_path / "shape", tmp_path / "corpus")
    tokenizer = Tokenizer(tmp_path / "shape")
    assert tokenizer.vocab_size == SHAPE["vocab_size"]
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_task_rows_come_from_the_text(tmp_path):
    draw = random.Random(0)
    documents = ["".join(draw.choices("abcdefgh \n", k=4000)) for _ in range(6)]
    write_task(tmp_path, documents, per_document=4)
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert len(rows) == 24
    for row in rows:
        assert len(row["choices"]) == len(set(row["choices"])) == 4
        own = [text for text in documents if row["context"] in text]
        follows = [any(row["context"] + choice in text for text in own) for choice in row["choices"]]
        assert follows.index(True) == row["gold"]
        assert sum(follows) == 1
    assert len({row["gold"] for row in rows}) > 1


def _row(name: str, loss: float) -> ModelScores:
    return ModelScores(name, 4, 1000, 2000, (loss, 0.01), (0.5, 0.1))


def test_conclusion_says_what_was_measured():
    rows = {"reference": _row("reference", 3.0), "slice": _row("slice", 3.2), "random": _row("random", 3.5)}
    assert "ahead of the random" in conclusion(rows)
    assert "0.300 lower" in conclusion(rows)
    rows["random"] = _row("random", 3.0)
    assert "behind the random" in conclusion(rows)
    rows["random"] = _row("random", 3.21)
    assert "not distinguishable" in conclusion(rows)
    assert "| slice | 4 | 1,000 | 2,000 | 3.200 ± 0.010 | 50.0% ± 10.0 |" in score_table(list(rows.values()))
