"""Runs that end at a bad moment: half a save, a validation, a full disk, a loss that is not finite."""

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from train_command import pretrain_command

from inheritune_lit.cli import main
from inheritune_lit.errors import UserError
from inheritune_lit.train import loop
from inheritune_lit.train.metrics import read_metrics
from inheritune_lit.train.saving import restore_state, save_state

TIMES = ("tokens_per_s", "mfu", "memory_gb", "seconds")

KILLED_IN_ITS_SECOND_SAVE = """
import io, os, signal, sys, torch
torch.set_num_threads(1)
save, saves = torch.save, []
def save_or_die(content, file):
    saves.append(1)
    if len(saves) == 1:
        return save(content, file)
    whole = io.BytesIO()
    save(content, whole)
    file.write(whole.getvalue()[: len(whole.getvalue()) // 2])
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
torch.save = save_or_die
from inheritune_lit.cli import main
main(sys.argv[1:])
"""


@pytest.fixture
def command(checkpoint, packed, tmp_path):
    """Arguments of a run in ``tmp_path / "run"``."""

    def build(**changes) -> list[str]:
        return pretrain_command(checkpoint, packed, **{"out_dir": tmp_path / "run", **changes})

    return build


@pytest.fixture
def uninterrupted(command, tmp_path) -> Path:
    """The same run in one go."""
    assert main(command(out_dir=tmp_path / "whole")) == 0
    return tmp_path / "whole"


def same_run(one: Path, other: Path) -> None:
    """Assert that metrics and weights are equal, bit for bit; times aside."""
    rows = [
        [{k: v for k, v in row.items() if k not in TIMES} for row in read_metrics(run / "metrics.csv")]
        for run in (one, other)
    ]
    assert [row["step"] for row in rows[0]] == ["0", "5", "10", "15", "20", "25", "30"]
    assert rows[0] == rows[1]
    weights = [torch.load(run / "final" / "lit_model.pth", weights_only=True) for run in (one, other)]
    for name, tensor in weights[0].items():
        assert torch.equal(tensor, weights[1][name]), name


def test_killed_while_saving(command, tmp_path, uninterrupted, capsys):
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_IN_ITS_SECOND_SAVE, *command()], capture_output=True, text=True, timeout=120
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    rows = read_metrics(tmp_path / "run" / "metrics.csv")
    assert int(rows[-1]["step"]) == 20  # written before the second save, not covered by the first
    assert torch.load(tmp_path / "run" / "state.pth", weights_only=True)["counters"]["step"] == 10
    assert not (tmp_path / "run" / "final").exists()
    assert main(command()) == 0
    assert "continues after step 10 of 30" in capsys.readouterr().err
    same_run(tmp_path / "run", uninterrupted)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["final", "inheritune.json", "metrics.csv"]


@pytest.mark.parametrize(
    ("number", "code", "where"),
    [(signal.SIGTERM, 0, "step"), (signal.SIGINT, 130, "step"), (signal.SIGTERM, 0, "validation")],
)
def test_a_signal_saves_and_leaves(command, tmp_path, uninterrupted, monkeypatch, capsys, number, code, where):
    original = loop.Trainer.train_step if where == "step" else loop.validate
    before = signal.getsignal(signal.SIGINT)
    calls = []

    def signalled(*args, **kwargs):
        calls.append(1)
        # The 8th step; or the second validation, which follows step 10.
        if len(calls) == (8 if where == "step" else 2):
            os.kill(os.getpid(), number)
        return original(*args, **kwargs)

    args = command(train__save_interval=1000)  # only the signal saves
    with monkeypatch.context() as patch:
        patch.setattr(*((loop.Trainer, "train_step") if where == "step" else (loop, "validate")), signalled)
        assert main(args) == code
    done = 8 if where == "step" else 10
    told = capsys.readouterr()
    assert f"stopped after step {done}, saved" in told.out + told.err
    assert f"finishing step {done}, then saving; again to stop now" in told.err
    assert torch.load(tmp_path / "run" / "state.pth", weights_only=True)["counters"]["step"] == done
    assert signal.getsignal(signal.SIGINT) is before
    assert main(args) == 0
    same_run(tmp_path / "run", uninterrupted)


def bad_samples(monkeypatch, *samples: int) -> None:
    """Make the loss of some samples NaN."""
    original = loop.Trainer._loss
    monkeypatch.setattr(
        loop.Trainer,
        "_loss",
        lambda self, chosen: original(self, chosen) * (float("nan") if set(samples) & set(chosen) else 1),
    )


def test_a_loss_that_is_not_finite_names_its_samples(command, tmp_path, monkeypatch, capsys, uninterrupted):
    with monkeypatch.context() as patch:
        bad_samples(patch, 54)  # samples 54 and 55 are the second micro-batch of step 14, between two log lines
        assert main(command()) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "loss nan" in error
    assert "at step 14, samples 54 to 55 of seed 1337; the state before it is saved" in error
    state = torch.load(tmp_path / "run" / "state.pth", weights_only=True)
    assert state["counters"]["step"] == 13
    assert all(tensor.isfinite().all() for tensor in state["model"].values())
    assert int(read_metrics(tmp_path / "run" / "metrics.csv")[-1]["step"]) == 10
    # Whatever it was, once it is gone the run goes on as if nothing had happened.
    assert main(command()) == 0
    same_run(tmp_path / "run", uninterrupted)


def test_a_bad_step_can_be_left_out(command, tmp_path, monkeypatch, capsys):
    bad_samples(monkeypatch, 54)
    assert main(command(train__bad_step="skip")) == 0
    assert "at step 14, samples 54 to 55 of seed 1337; the step is left out" in capsys.readouterr().err
    rows = read_metrics(tmp_path / "run" / "metrics.csv")
    assert [row["skipped"] for row in rows if row["loss"]] == ["0", "0", "1", "1", "1", "1"]


def test_a_loss_that_jumps_stops_the_run(command, tmp_path, monkeypatch, capsys):
    original = loop.Trainer._loss
    # Sample 100 is in step 26, when the mean has settled.
    monkeypatch.setattr(
        loop.Trainer, "_loss", lambda self, chosen: original(self, chosen) * (9 if 100 in chosen else 1)
    )
    assert main(command()) == 2
    assert "jumps from a mean of" in (error := capsys.readouterr().err.splitlines()[-1])
    assert "at step 26, samples 100 to 103 of seed 1337" in error
    assert main(command(train__max_loss_jump="null")) == 0  # the same run, told not to mind


def test_a_full_disk_keeps_the_old_state(tmp_path):
    model = torch.nn.Linear(100, 100)
    optimizer = torch.optim.AdamW(model.parameters())
    save_state(tmp_path, model.state_dict(), optimizer.state_dict(), {"step": 5})
    old = (tmp_path / "state.pth").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(old) // 2, limits[1]))
    try:
        with pytest.raises(UserError, match=r"cannot save the state.*make room"):
            save_state(tmp_path, model.state_dict(), optimizer.state_dict(), {"step": 6})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["state.pth"]
    assert restore_state(tmp_path, model, optimizer) == {"step": 5}
