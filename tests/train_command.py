"""A small ``inheritune pretrain`` as a command line."""

import signal
import subprocess
import sys
from pathlib import Path

from inheritune_lit.train.metrics import read_metrics

# Of the domains of the fixture ``mixed``.
WEIGHTS = {"code": 0.2, "talk": 0.3, "wiki": 0.5}

_KILLED = """
import os, signal, sys, torch
torch.set_num_threads(1)
from inheritune_lit.train import loop
step = loop.Trainer.train_step
def step_or_die(self):
    if self.step == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self)
loop.Trainer.train_step = step_or_die
from inheritune_lit.cli import main
main(sys.argv[2:])
"""


def kill_at_step(step: int, args: list[str]) -> None:
    """Run a command line in another process that dies before optimizer step number ``step``."""
    killed = subprocess.run([sys.executable, "-c", _KILLED, str(step), *args], capture_output=True, timeout=120)
    assert killed.returncode == -signal.SIGKILL, killed.stderr


def pretrain_command(checkpoint: Path, packed: Path, out_dir: Path, **changes: object) -> list[str]:
    """Arguments of a run of 30 steps; ``train__max_steps=7`` changes one, None leaves it out."""
    flags: dict[str, object] = {
        "initial_checkpoint_dir": checkpoint,
        "data": packed,
        "out_dir": out_dir,
        "train.max_steps": 30,
        "train.global_batch_size": 4,
        "train.micro_batch_size": 2,
        "train.max_seq_length": 16,
        "train.lr_warmup_steps": 5,
        "train.min_lr": 1e-4,
        "train.log_interval": 5,
        "train.save_interval": 10,
        "eval.interval": 10,
        "eval.max_iters": 4,
        "optimizer.lr": 3e-3,
        "precision": "32-true",
    }
    flags |= {name.replace("__", "."): value for name, value in changes.items()}
    return [
        "pretrain",
        *(part for name, value in flags.items() if value is not None for part in (f"--{name}", str(value))),
    ]


def losses_of(run_dir: Path) -> list[tuple[str, str, str, str]]:
    """What two equal runs have in common in their metrics."""
    return [(row["step"], row["tokens"], row["loss"], row["val_loss"]) for row in read_metrics(run_dir / "metrics.csv")]
