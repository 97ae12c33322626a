"""Every recipe for ``pretrain`` is a command that plans a run."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from tiny import make_packed
from train_command import pretrain_command

from inheritune_lit.cli import main
from inheritune_lit.data.packed import PackedDataset
from inheritune_lit.model.load import load_model
from inheritune_lit.train.metrics import read_metrics

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipe_plans_a_run(recipe, checkpoint, tokenizer_dir, tmp_path, capsys):
    data = make_packed(tmp_path / "data", tokenizer_dir)
    args = ["pretrain", "--config", recipe, "--initial_checkpoint_dir", checkpoint, "--data", data]
    # Short samples and warm-up, for the tiny data; everything else as the recipe has it.
    args += ["--out_dir", tmp_path / "run", "--train.max_seq_length", 2, "--train.lr_warmup_steps", 0, "--dry_run"]
    assert main([str(arg) for arg in args]) == 0
    train = yaml.safe_load(recipe.read_text())["train"]
    assert f"of {train['global_batch_size'] * 2:,} tokens" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_papers_recipe_is_as_stated():
    recipe = yaml.safe_load(next(path for path in RECIPES if path.stem == "openllama-3b-13l-1b").read_text())
    train, optimizer = recipe["train"], recipe["optimizer"]
    assert train["global_batch_size"] * train["max_seq_length"] == 131_072
    assert (train["epochs"], train["lr_warmup_steps"]) == (8, 1000)
    assert (optimizer["lr"], optimizer["weight_decay"]) == (3e-4, 0.1)


def test_plan_tells_what_whole_steps_leave_out(checkpoint, packed, tmp_path, capsys):
    args = pretrain_command(checkpoint, packed, tmp_path / "run", train__max_steps=None, train__max_tokens=700)
    assert main([*args, "--dry_run"]) == 0
    assert "10 steps of 64 tokens = 640 tokens (700 asked for: whole steps only)" in capsys.readouterr().err


def test_training_learns_more_than_token_frequencies(checkpoint, packed, tmp_path):
    changes = {"train__max_steps": 200, "optimizer__lr": 1e-2, "train__micro_batch_size": 4, "eval__interval": 100}
    assert main(pretrain_command(checkpoint, packed, tmp_path / "run", **changes)) == 0
    targets = np.concatenate([block[1:] for block in PackedDataset(packed, "val", 16)])
    shares = np.bincount(targets) / len(targets)
    # The best that a prediction without context can do, fitted on the held-out tokens themselves.
    constant = -np.sum(shares[shares > 0] * np.log(shares[shares > 0]))
    row = read_metrics(tmp_path / "run" / "metrics.csv")[-1]
    assert float(row["val_loss"]) + 5 * float(row["val_stderr"]) < constant


def test_bf16_mixed_loses_no_small_update(checkpoint, packed, tmp_path):
    changes = {"precision": "bf16-mixed", "optimizer__lr": 1e-6, "train__min_lr": 1e-6, "train__max_steps": 10}
    assert main(pretrain_command(checkpoint, packed, tmp_path / "run", **changes)) == 0
    before, after = load_model(checkpoint), load_model(tmp_path / "run" / "final")
    for (name, old), new in zip(before.named_parameters(), after.parameters(), strict=True):
        if ".attn." in name or ".mlp." in name:
            assert (old != new).float().mean() > 0.9, name
            assert new.dtype == torch.float32
