"""Two processes against one: the same run, whoever shares the work."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import make_checkpoint
from train_command import pretrain_command

from inheritune_lit.cli import main
from inheritune_lit.inherit.args import SliceArgs
from inheritune_lit.inherit.slice import slice_model
from inheritune_lit.model.load import load_model
from inheritune_lit.train.metrics import read_metrics

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def two_ranks(arguments: list[str]) -> subprocess.CompletedProcess:
    """Run a command on two processes, as a user of torchrun does."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launcher, "-m", "inheritune_lit", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=ENVIRONMENT)


def losses(run: Path) -> list[list[float]]:
    columns = ("step", "tokens", "loss", "grad_norm", "val_loss", "val_stderr")
    return [[float(row[column]) for column in columns if row[column]] for row in read_metrics(run / "metrics.csv")]


@pytest.mark.parametrize("strategy", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_two_ranks_do_what_one_does(checkpoint, packed, tmp_path, strategy):
    args = {"train__max_steps": 12, "train__save_interval": 5, "train__keep_last": 1}
    assert main(pretrain_command(checkpoint, packed, tmp_path / "one", **args)) == 0
    shared = {**args, "devices": 2, "strategy": strategy}
    # Stopped after its first step, and continued.
    stopped = two_ranks(pretrain_command(checkpoint, packed, tmp_path / "two", **shared, train__max_time=0.001))
    assert stopped.returncode == 0, stopped.stderr
    assert "stopped after step 1, saved" in stopped.stdout
    done = two_ranks(pretrain_command(checkpoint, packed, tmp_path / "two", **shared))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("wrote") <= 1  # one rank speaks
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert len(one) == len(two)
    for expected, found in zip(one, two, strict=True):
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)
    weights = [load_model(tmp_path / run / "final").state_dict() for run in ("one", "two")]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-3, atol=1e-4)
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == [
        "final",
        "inheritune.json",
        "metrics.csv",
        "step-00000010",
    ]


@pytest.mark.parametrize("precision", [pytest.param("bf16-mixed", marks=pytest.mark.slow), "bf16-true"])
def test_one_process_continues_what_two_ranks_began(checkpoint, packed, tmp_path, precision):
    """One rounds weights once a step and two leave it to autocast, or add up gradients apart: the state is the same."""
    args = {"train__max_steps": 12, "precision": precision}
    assert main(pretrain_command(checkpoint, packed, tmp_path / "one", **args)) == 0
    began = two_ranks(pretrain_command(checkpoint, packed, tmp_path / "two", **args, devices=2, train__max_time=0.001))
    assert began.returncode == 0, began.stderr
    assert main(pretrain_command(checkpoint, packed, tmp_path / "two", **args)) == 0
    for expected, found in zip(losses(tmp_path / "one"), losses(tmp_path / "two"), strict=True):
        assert found == pytest.approx(expected, rel=0.01)
    one, two = (load_model(tmp_path / run / "final").state_dict() for run in ("one", "two"))
    for name, tensor in one.items():
        assert tensor.dtype == (torch.float32 if precision == "bf16-mixed" else torch.bfloat16)
        torch.testing.assert_close(two[name], tensor, rtol=0.02, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_ranks_distill_as_one_does(packed, tmp_path, tokenizer_dir, strategy):
    make_checkpoint(tmp_path / "teacher", tokenizer_dir, n_layer=3, seed=7)
    checkpoint = slice_model(SliceArgs(str(tmp_path / "teacher"), layers="0,2", out_dir=tmp_path / "slice")).folder
    args = {"train__max_steps": 8, "distill__teacher": tmp_path / "teacher", "distill__align": "layers"}
    assert main(pretrain_command(checkpoint, packed, tmp_path / "one", **args)) == 0
    done = two_ranks(pretrain_command(checkpoint, packed, tmp_path / "two", **args, devices=2, strategy=strategy))
    assert done.returncode == 0, done.stderr
    for expected, found in zip(losses(tmp_path / "one"), losses(tmp_path / "two"), strict=True):
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_bad_input_ends_every_rank(checkpoint, packed, tmp_path):
    ended = two_ranks(pretrain_command(checkpoint, packed, tmp_path / "run", devices=2, train__global_batch_size=6))
    assert ended.returncode != 0
    assert "not a multiple of --train.micro_batch_size 2 times 2 devices" in ended.stderr


@pytest.mark.slow
@pytest.mark.parametrize("kept", [("--top_k", "8"), ("--samples", "9")])
def test_two_ranks_teach_the_same_bytes(checkpoint, packed, tmp_path, kept):
    command = ["teach", str(checkpoint), "--data", str(packed), "--max_seq_length", "16", "--batch_size", "5", *kept]
    assert main([*command, "--out_dir", str(tmp_path / "one")]) == 0
    done = two_ranks([*command, "--out_dir", str(tmp_path / "two"), "--devices", "2"])
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("draws per position") + done.stderr.count("top 8 of each position") == 1
    one, two = ({path.name: path.read_bytes() for path in (tmp_path / name).glob("*.bin")} for name in ("one", "two"))
    assert one == two
    refused = two_ranks([*command, "--out_dir", str(tmp_path / "two"), "--devices", "2"])
    assert refused.returncode != 0 and "already holds" in refused.stderr
