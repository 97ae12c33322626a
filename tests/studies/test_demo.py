"""The demo's corpus and task."""

import argparse
import json
import random

from inheritune_lit.evaluation.cells import CheckpointScores
from inheritune_lit.studies.demo import conclusion, score_table
from inheritune_lit.studies.inputs import SHAPE, TASK, write_corpus, write_shape, write_task
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


def test_conclusion_says_what_was_measured():
    losses = {"reference": (3.0, 0.01), "slice": (3.2, 0.01), "random": (3.5, 0.01)}
    assert "ahead of the random" in conclusion(losses)
    assert "0.300 lower" in conclusion(losses)
    losses["random"] = (3.0, 0.01)
    assert "behind the random" in conclusion(losses)
    losses["random"] = (3.21, 0.01)
    assert "not distinguishable" in conclusion(losses)


def test_table_of_what_was_scored():
    scored = CheckpointScores(
        name="slice",
        path="runs/demo/slice/final",
        weights_sha256="",
        tokenizer_sha256="",
        n_layer=4,
        parameters=1000,
        manifest={"tokens": 2000},
        held_out={"loss": 3.2, "stderr": 0.01},
        tasks={TASK: {"acc": {"value": 0.5, "stderr": 0.1}}},
        truncated=0,
        seconds=1.0,
        cells=[],
    )
    assert "| slice | 4 | 1,000 | 2,000 | 3.200 ± 0.010 | 50.0% ± 10.0 |" in score_table({"slice": scored})
