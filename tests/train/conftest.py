"""A checkpoint, data and settings of a run of a second."""

import pytest
from tiny import make_checkpoint, make_packed

from inheritune_lit.train.args import EvalArgs, OptimizerArgs, TrainArgs
from inheritune_lit.train.pretrain import pretrain


@pytest.fixture(scope="session")
def packed(tmp_path_factory, tokenizer_dir):
    return make_packed(tmp_path_factory.mktemp("packed") / "easy", tokenizer_dir)


@pytest.fixture
def checkpoint(tmp_path, tokenizer_dir):
    make_checkpoint(tmp_path / "start", tokenizer_dir)
    return tmp_path / "start"


@pytest.fixture
def train_args():
    return TrainArgs(
        global_batch_size=8,
        micro_batch_size=4,
        max_steps=12,
        lr_warmup_steps=2,
        min_lr=1e-4,
        log_interval=1,
        save_interval=4,
    )


@pytest.fixture
def run(checkpoint, packed, tmp_path, train_args):
    """Calls ``pretrain`` with small settings; keyword arguments replace them."""

    def call(out_dir=tmp_path / "run", **changes):
        given = {
            "train": train_args,
            "eval": EvalArgs(interval=6, max_iters=2),
            "optimizer": OptimizerArgs(lr=3e-3),
            "precision": "32-true",
            "seed": 5,
            **changes,
        }
        start = given.pop("initial_checkpoint_dir", checkpoint)
        data = given.pop("data", packed)
        return pretrain(start, data, out_dir, **given)

    return call
