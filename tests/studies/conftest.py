"""A reference of four layers that has learnt its data, and a small growing of it."""

from pathlib import Path

import pytest
import torch
from random_models import make_gpt2
from tiny import make_checkpoint, make_packed

from inheritune_lit.cli import main
from inheritune_lit.train.args import EvalArgs, OptimizerArgs, PretrainArgs, TrainArgs
from inheritune_lit.train.pretrain import pretrain

__all__ = ["make_gpt2"]


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Models of this size are slower on several threads, on a busy machine by far."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def packed(tmp_path_factory, tokenizer_dir):
    return make_packed(tmp_path_factory.mktemp("grow-packed") / "easy", tokenizer_dir)


@pytest.fixture(scope="session")
def reference(tmp_path_factory, tokenizer_dir, packed) -> Path:
    """A litgpt checkpoint, trained for so long that a few steps on fewer layers do not reach it."""
    folder = tmp_path_factory.mktemp("grow-reference")
    make_checkpoint(folder / "start", tokenizer_dir, n_layer=4)
    train = TrainArgs(
        global_batch_size=8,
        micro_batch_size=8,
        max_seq_length=16,
        max_steps=150,
        lr_warmup_steps=10,
        min_lr=1e-4,
        save_interval=None,
    )
    settings = {"train": train, "eval": EvalArgs(interval=150), "optimizer": OptimizerArgs(lr=1e-2)}
    return pretrain(PretrainArgs(folder / "start", packed, folder / "run", **settings, precision="32-true")).final


@pytest.fixture(scope="session")
def command(reference, packed):
    """Arguments of a growing from 2 to 4 layers; ``train__max_steps=7`` changes one, None leaves it out."""

    def make(out_dir: Path, **changes: object) -> list[str]:
        flags: dict[str, object] = {
            "ref": reference,
            "data": packed,
            "out_dir": out_dir,
            "n": 2,
            "grow_by": 1,
            "train.global_batch_size": 8,
            "train.micro_batch_size": 8,
            "train.max_seq_length": 16,
            "train.max_steps": 6,
            "train.lr_warmup_steps": 1,
            "train.min_lr": 1e-5,
            "train.log_interval": 2,
            "train.save_interval": 2,
            "eval.interval": 3,
            "eval.max_iters": 4,
            "optimizer.lr": 1e-4,
            "precision": "32-true",
            "seed": 5,
        }
        flags |= {name.replace("__", "."): value for name, value in changes.items()}
        given = {name: value for name, value in flags.items() if value is not None}
        return ["grow", *(part for name, value in given.items() for part in (f"--{name}", str(value)))]

    return make


@pytest.fixture(scope="session")
def undisturbed(command, tmp_path_factory) -> Path:
    """A growing with no margin that nothing disturbed; not to be changed."""
    folder = tmp_path_factory.mktemp("undisturbed") / "grown"
    assert main(command(folder, margin=0)) == 0
    return folder


@pytest.fixture
def grow(command, tmp_path):
    """Runs such a command in this process, into ``grown`` where no other folder is given."""

    def run(*more: str, out_dir: Path = tmp_path / "grown", **changes: object) -> None:
        assert main([*command(out_dir, **changes), *more]) == 0

    return run
