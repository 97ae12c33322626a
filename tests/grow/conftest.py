"""A reference of four layers that has learnt its data, and a small growing of it."""

from dataclasses import replace
from pathlib import Path

import pytest
from tiny import make_checkpoint, make_packed

from inheritune_lit.grow.layers import GrowOptions
from inheritune_lit.grow.run import grow
from inheritune_lit.grow.training import Training
from inheritune_lit.train.args import EvalArgs, MixtureArgs, OptimizerArgs, SpeedArgs, TrainArgs
from inheritune_lit.train.pretrain import pretrain

TRAIN = TrainArgs(
    global_batch_size=8,
    micro_batch_size=8,
    max_seq_length=16,
    max_steps=12,
    lr_warmup_steps=2,
    min_lr=1e-4,
    log_interval=4,
    save_interval=4,
)
TRAINING = {
    "train": TRAIN,
    "eval": EvalArgs(interval=6, max_iters=4),
    "optimizer": OptimizerArgs(lr=3e-3),
    "precision": "32-true",
    "seed": 5,
}


@pytest.fixture(scope="session")
def packed(tmp_path_factory, tokenizer_dir):
    return make_packed(tmp_path_factory.mktemp("grow-packed") / "easy", tokenizer_dir)


@pytest.fixture(scope="session")
def reference(tmp_path_factory, tokenizer_dir, packed) -> Path:
    """A litgpt checkpoint, trained for as long as four rounds of growing."""
    folder = tmp_path_factory.mktemp("grow-reference")
    make_checkpoint(folder / "start", tokenizer_dir, n_layer=4)
    train = replace(TRAIN, max_steps=48)
    return pretrain(folder / "start", packed, folder / "run", **{**TRAINING, "train": train}).final


@pytest.fixture
def growing(reference, packed, tmp_path):
    """Calls ``grow`` with small settings; keyword arguments replace those of growing, ``training`` those of training."""

    def call(out_dir=tmp_path / "grown", options=GrowOptions(n=2, grow_by=1), training=None, **changes):
        given = {
            "data": packed,
            "speed": SpeedArgs(),
            "mixture": MixtureArgs(),
            "documents": "packed",
            "devices": 1,
            "num_nodes": 1,
            "strategy": "auto",
            "logger_name": "csv",
            **TRAINING,
            **(training or {}),
        }
        ref = changes.pop("ref", reference)
        return grow(str(ref), out_dir, options, Training(**given), **changes)

    return call
