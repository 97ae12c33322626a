"""Studies whose models learn from a teacher or are trained in part: what they plan, count and leave as it was."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_runner import experiments
from tiny import make_checkpoint, make_packed

from inheritune_lit.checkpoint.config import load_config
from inheritune_lit.cli import main
from inheritune_lit.model.flops import flops_per_token
from inheritune_lit.model.load import load_state
from inheritune_lit.studies.runner import run_experiments
from inheritune_lit.train.args import DistillArgs
from inheritune_lit.train.trainable import TrainedModel

TOKENS = 8 * 16  # of a step of a growing


def test_growing_of_new_layers_with_the_reference_as_teacher(command, reference, tmp_path, capsys):
    args = {"max_layers": 3, "distill__teacher": reference, "distill__alpha": 0.2, "train__trainable": "h.last:1"}
    assert main(command(tmp_path / "grown", **args)) == 0
    told = capsys.readouterr().err
    config = load_config(reference)
    history = json.loads((tmp_path / "grown" / "grow.json").read_text())
    for row in history["rounds"]:
        config.n_layer = row["n_layer"]
        student = TrainedModel(config, False, "h.last:1").flops_per_token(16)
        config.n_layer = 4
        expected = 6 * TOKENS * (student + flops_per_token(config, 16) / 3)
        assert row["flops"] == pytest.approx(expected)
        planned = re.search(rf"round {row['round']}: .* ([\d.e+]+) FLOPs", told)
        assert float(planned[1]) == pytest.approx(expected, rel=0.01)
        run = tmp_path / "grown" / row["folder"]
        settings = json.loads((run / "inheritune.json").read_text())["settings"]
        start, final = load_state(Path(settings["initial_checkpoint_dir"])), load_state(run / "final")
        assert "teacher" in settings["distill"] and settings["distill"]["alpha"] == 0.2
        for name, tensor in final.items():
            trained = name.startswith(f"transformer.h.{row['n_layer'] - 1}.")
            assert torch.equal(start[name], tensor) != trained, name
    assert main(command(tmp_path / "grown", **{**args, "distill__alpha": 0.3})) == 2
    assert "was started with distill.alpha '0.2', not '0.3'" in capsys.readouterr().err


def test_a_comparison_counts_its_teacher_and_what_is_trained(tmp_path, tokenizer_dir):
    make_checkpoint(tmp_path / "ref", tokenizer_dir, n_layer=3)
    make_packed(tmp_path / "data", tokenizer_dir)
    plain, other, _ = experiments(tmp_path, tmp_path / "runs")
    distill = DistillArgs(str(tmp_path / "ref"))
    part = replace(other.training.train, trainable="h.1")
    taught = replace(other, training=replace(other.training, distill=distill, train=part))
    found = run_experiments([plain, taught])
    config = load_config(tmp_path / "runs" / "start")
    per_token = flops_per_token(config, 16)
    teacher = flops_per_token(load_config(tmp_path / "ref"), 16) / 3
    assert found[0].flops == pytest.approx(4 * 4 * 16 * per_token)
    student = TrainedModel(config, False, "h.1").flops_per_token(16)
    assert student < 0.8 * per_token
    assert found[1].flops == pytest.approx(4 * 4 * 16 * (student + teacher))


def test_an_ablation_says_what_a_run_costs(command, reference, tmp_path, capsys):
    words = command(tmp_path / "compared", n=2, grow_by=None, seed=None, distill__teacher=reference)
    assert main(["ablate", *words[1:], "--criteria", "first", "last", "--dry_run"]) == 0
    told = capsys.readouterr().err
    config = load_config(reference)
    teacher, config.n_layer = flops_per_token(config, 16) / 3, 2
    total, share = re.search(r"= 6 runs, each (\S+) FLOPs, .* ([\d.]+)% the teacher", told).groups()
    validation = 3 * 32 * 16 * flops_per_token(config, 16) / 3  # before the first step, in the middle, and at the end
    expected = 6 * TOKENS * (flops_per_token(config, 16) + teacher) + validation
    assert float(total) == pytest.approx(expected, rel=0.01)
    assert float(share) == pytest.approx(100 * 6 * TOKENS * teacher / expected, abs=0.1)
