"""The whole command on two processes, and with a cache of single scores."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from inheritune_lit.cli import main
from inheritune_lit.evaluation.open_lm import LitLM
from inheritune_lit.io.folders import own_folder


def _command(models: list[Path], rows_dir: Path, out_dir: Path, *more: str) -> list[str]:
    asked = ["--tasks", "piqa,wikitext,sciq", "--limit", "6", "--data_dir", str(rows_dir), "--out_dir", str(out_dir)]
    return ["eval", "--checkpoint_dir", *map(str, models), *asked, *more]


def _scores(out_dir: Path) -> list[dict[str, float]]:
    results = json.loads((out_dir / "results.json").read_text())
    return [
        {
            f"{task} {metric}": score["value"]
            for task, scores in model["tasks"].items()
            for metric, score in scores.items()
        }
        for model in results["checkpoints"]
    ]


def test_two_processes_write_the_results_of_one(two_models, rows_dir, tmp_path):
    assert main(_command(two_models, rows_dir, tmp_path / "one")) == 0
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = _command(two_models, rows_dir, tmp_path / "two", "--devices", "2")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launcher, "-m", "inheritune_lit", *command], capture_output=True, text=True, timeout=300, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("# Tasks") == 1  # one process speaks
    assert done.stderr.count("(1 of 3)") == 2  # a line a model
    one, two = _scores(tmp_path / "one"), _scores(tmp_path / "two")
    assert one and one[0]
    for expected, found in zip(one, two, strict=True):
        assert found == pytest.approx(expected, rel=1e-5)


def test_all_processes_end_where_another_evaluation_has_the_folder(two_models, rows_dir, tmp_path):
    command = _command(two_models, rows_dir, tmp_path / "out", "--devices", "2")
    with own_folder(tmp_path / "out"):
        words = [sys.executable, "-m", "inheritune_lit", *command]
        done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and done.stderr.count("is at work on") == 1, done.stderr


def test_cached_scores_are_not_computed_again(two_models, rows_dir, tmp_path, monkeypatch):
    cache = ("--cache_dir", str(tmp_path / "cache"))
    opened = []
    provenance = LitLM.provenance
    monkeypatch.setattr(LitLM, "provenance", lambda self: (opened.append(self), provenance(self))[1])
    for out_dir in ("fresh", "cached"):
        assert main(_command(two_models[:1], rows_dir, tmp_path / out_dir, *cache)) == 0
    computed = {id(lm): lm.scorer.requests_scored for lm in opened}
    assert [count > 0 for count in computed.values()] == [True, False]
    assert _scores(tmp_path / "fresh") == _scores(tmp_path / "cached")


def test_bad_numbers_of_devices(two_models, rows_dir, tmp_path, capsys):
    assert main(_command(two_models, rows_dir, tmp_path / "out", "--devices", "0")) == 2
    assert "--devices 0" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
