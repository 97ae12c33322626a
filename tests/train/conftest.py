"""A checkpoint, data and settings of a run of a second."""

import json
import random
from pathlib import Path

import pytest
from tiny import make_checkpoint, make_packed

from inheritune_lit.data.args import PrepareArgs
from inheritune_lit.data.prepare import prepare
from inheritune_lit.train import loop
from inheritune_lit.train.args import EvalArgs, OptimizerArgs, PretrainArgs, TrainArgs
from inheritune_lit.train.pretrain import pretrain


@pytest.fixture(scope="session")
def packed(tmp_path_factory, tokenizer_dir):
    return make_packed(tmp_path_factory.mktemp("packed") / "easy", tokenizer_dir)


@pytest.fixture(scope="session")
def prepare_domains(tokenizer_dir):
    """Packs domains with five words of their own each; ``{"a": 40}`` asks for 40 documents of 1 to 25 words."""

    def make(folder: Path, documents: dict[str, int]) -> Path:
        source = folder.parent / f"{folder.name}-text"
        source.mkdir()
        for name, count in documents.items():
            draw = random.Random(name)
            words = ["".join(draw.choices("abcdefgh", k=4)) for _ in range(5)]
            texts = [f"{number} " + " ".join(draw.choices(words, k=draw.randint(1, 25))) for number in range(count)]
            (source / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        prepare(PrepareArgs(source, tokenizer_dir, folder, val_fraction=0.2))
        return folder

    return make


@pytest.fixture(scope="session")
def mixed(tmp_path_factory, prepare_domains):
    """Packed data of three domains, of 60, 25 and 10 documents."""
    return prepare_domains(tmp_path_factory.mktemp("mixed") / "mixed", {"code": 60, "talk": 25, "wiki": 10})


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
def seen(monkeypatch):
    """Blocks that training reads, in order."""
    blocks: list[int] = []
    original = loop.Trainer._loss

    def loss(self, samples):
        blocks.extend(self.sampler.blocks(samples).tolist())
        return original(self, samples)

    monkeypatch.setattr(loop.Trainer, "_loss", loss)
    return blocks


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
        return pretrain(PretrainArgs(start, data, out_dir, **given))

    return call
