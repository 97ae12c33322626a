"""Every recipe for ``pretrain`` is a command that plans a run."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from tiny import make_checkpoint, make_packed
from train_command import pretrain_command

from inheritune_lit.checkpoint.config import load_config
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
    # Its domains are not these: the tiny data has one.
    args += ["--mixture.weights", "proportional", "--precision", "32-true"]
    assert main([str(arg) for arg in args]) == 0
    train = yaml.safe_load(recipe.read_text())["train"]
    assert f"of {train['global_batch_size'] * 2:,} tokens" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def load(name: str) -> dict:
    return yaml.safe_load(next(path for path in RECIPES if path.stem == name).read_text())


@pytest.mark.parametrize("recipe", [path.stem for path in RECIPES if path.stem.startswith("paper-")])
def test_papers_recipes_are_as_stated(recipe):
    train, optimizer = load(recipe)["train"], load(recipe)["optimizer"]
    assert train["global_batch_size"] * train["max_seq_length"] == 131_072
    assert train.get("epochs") == 8 if recipe.endswith("-1b") else train["max_tokens"] == 50_000_000_000
    assert (train["schedule"], train["lr_warmup_steps"]) == ("cosine", 1000)
    assert (optimizer["lr"], optimizer["weight_decay"], optimizer["decay"]) == (3e-4, 0.1, "matrices")


@pytest.mark.parametrize("recipe", [path.stem for path in RECIPES if path.stem.startswith("code-")])
def test_the_codes_recipes_are_as_it_ran(recipe):
    whole = load(recipe)
    train, optimizer = whole["train"], whole["optimizer"]
    assert train["global_batch_size"] * train["max_seq_length"] == 16_384
    micro_batches = 64_000 if recipe.endswith("-1b") else 191_000
    assert train["max_steps"] == micro_batches / 8
    assert (train["schedule"], train["max_norm"]) == ("constant", None)
    assert (optimizer["weight_decay"], optimizer["decay"]) == (0.01, "all")
    # The smaller corpus is weighed in training, the larger one when it is packed.
    if recipe.endswith("-1b"):
        assert sum(whole["mixture"]["weights"].values()) == 100
    else:
        assert whole["data"] == "data/redpajama-50b-llama-code"


def test_one_recipe_serves_every_depth(packed, tmp_path, tokenizer_dir, capsys):
    for n in (1, 2):
        make_checkpoint(tmp_path / f"start-{n}l", tokenizer_dir, n_layer=n)
    command = pretrain_command(tmp_path / "start-{n}l", packed, tmp_path / "run-{n}", train__max_steps=6)
    for n in (1, 2):
        assert main([*command, "--n", str(n)]) == 0
        assert load_config(tmp_path / f"run-{n}" / "final").n_layer == n
    assert main(command) == 2
    assert "is for several depths; give one" in capsys.readouterr().err
    assert main([*pretrain_command(tmp_path / "start-1l", packed, tmp_path / "run"), "--n", "1"]) == 2
    assert "--n 1 needs {n} in --initial_checkpoint_dir or --out_dir" in capsys.readouterr().err


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
