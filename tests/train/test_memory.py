"""The predicted memory of a step against a process that trains, and what is said when it does not fit."""

import os
import subprocess
import sys
from collections import namedtuple
from dataclasses import replace

import pytest
import torch
from tiny import SHAPE
from train_command import losses_of, pretrain_command

from inheritune_lit.checkpoint.config import Config
from inheritune_lit.cli import main
from inheritune_lit.train import plan as room
from inheritune_lit.train.args import OptimizerArgs, SpeedArgs, TrainArgs, TrainingArgs
from inheritune_lit.train.plan import largest_micro_batch, step_memory
from inheritune_lit.train.setup import Kernels

# glibc keeps what is freed in its heap: without it the process holds what its tensors hold.
EXACT = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "1000000", "OMP_NUM_THREADS": "1"}
OPENLLAMA_13 = replace(Config.from_name("open_llama_3b"), n_layer=13)

MEASURED = """
import sys, threading, torch
from pathlib import Path
torch.set_num_threads(1)
from lightning.fabric import Fabric
from inheritune_lit.checkpoint.config import Config
from inheritune_lit.model.gpt import checkpoint_activations
from inheritune_lit.model.gpt import build_model
from inheritune_lit.train.args import OptimizerArgs
from inheritune_lit.train.loss import TrainingModel
from inheritune_lit.train.optim import build_optimizer
precision, kernel, recompute = sys.argv[1:]
def anonymous():
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("RssAnon")) * 1024
def step(gpt, n):
    fabric = Fabric(accelerator="cpu", precision="bf16-mixed" if precision == "bf16-mixed" else "32-true")
    loss = fabric.setup_module(TrainingModel(gpt, kernel))
    optimizer = build_optimizer(gpt, OptimizerArgs())
    peak, done = [0], threading.Event()
    def watch():
        while not done.wait(0.003):
            peak[0] = max(peak[0], anonymous())
    watcher = threading.Thread(target=watch)
    watcher.start()
    for number in range(2):
        for micro in range(2):
            tokens = torch.randint(0, 2000, (n, 257))
            summed = loss(tokens[:, :-1], tokens[:, 1:])
            fabric.backward(summed)
        optimizer.step()
        optimizer.zero_grad()
    done.set()
    watcher.join()
    return peak[0]
def build(**shape):
    gpt = build_model(Config(**shape))
    if recompute == "True":
        checkpoint_activations(gpt)
    return gpt.to(torch.bfloat16) if precision == "bf16-true" else gpt
small = dict(n_layer=1, n_embd=64, n_head=2, intermediate_size=64, padded_vocab_size=2000, vocab_size=2000,
    block_size=256, rotary_percentage=1.0, parallel_residual=False, bias=False, norm_class_name="RMSNorm",
    mlp_class_name="LLaMAMLP")
step(build(**small), 1)  # what the first step brings along
before = anonymous()
gpt = build(**{**small, "n_layer": 8, "n_embd": 512, "n_head": 8, "intermediate_size": 1408})
print(step(gpt, 12) - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("precision", "kernel", "recompute"),
    [
        ("32-true", "plain", False),
        ("32-true", "chunked", False),
        ("32-true", "plain", True),
        ("bf16-mixed", "plain", False),
        ("bf16-true", "plain", False),
    ],
)
def test_prediction_against_a_process(precision, kernel, recompute):
    command = [sys.executable, "-c", MEASURED, precision, kernel, str(recompute)]
    measured = int(subprocess.run(command, capture_output=True, text=True, check=True, timeout=300, env=EXACT).stdout)
    config = Config(**{**SHAPE, "n_layer": 8, "n_embd": 512, "n_head": 8, "n_query_groups": 8, "block_size": 256})
    config = replace(config, intermediate_size=1408, padded_vocab_size=2000, head_size=64)
    parameters = 8 * (4 * 512**2 + 3 * 512 * 1408 + 2 * 512) + 512 + 2 * 2000 * 512
    speed = SpeedArgs(activation_checkpointing=recompute)
    predicted = step_memory(config, parameters, 12, 256, precision, speed, OptimizerArgs(), kernel, False)
    assert predicted.total == pytest.approx(measured, rel=0.1)


def test_the_papers_model_on_the_papers_card():
    """48 GB hold micro-batches of 8, 24 GB hold 8-bit states with recomputed activations (computed)."""
    parameters = 1_815_638_400
    memory = step_memory(
        OPENLLAMA_13, parameters, 8, 2048, "bf16-true", SpeedArgs(), OptimizerArgs(), "liger", compiled=True
    )
    assert memory.weights + memory.gradients + memory.optimizer == 16 * parameters
    assert memory.activations / 8 == pytest.approx(1.95e9, rel=0.01)  # an independent estimate from saved tensors
    assert 44e9 < memory.total < 48e9
    assert largest_micro_batch(48_000_000_000, memory, 8) == 9
    eight_bit = OptimizerArgs(name="adamw8bit")
    recomputed = SpeedArgs(activation_checkpointing=True)
    small = step_memory(OPENLLAMA_13, parameters, 4, 2048, "bf16-true", recomputed, eight_bit, "liger", compiled=True)
    assert small.total < 24e9


def test_a_smaller_micro_batch_continues_the_same_run(checkpoint, packed, tmp_path):
    assert main(pretrain_command(checkpoint, packed, tmp_path / "one")) == 0
    stopped = {"out_dir": tmp_path / "two", "train__max_time": 0.02}
    assert main(pretrain_command(checkpoint, packed, **stopped)) == 0
    fewer = {"out_dir": tmp_path / "two", "train__micro_batch_size": 1, "eval__max_iters": 8}
    assert main(pretrain_command(checkpoint, packed, **fewer)) == 0
    one, two = ([float(value) for row in losses_of(tmp_path / run) for value in row if value] for run in ("one", "two"))
    assert two == pytest.approx(one, rel=1e-4)


def test_too_little_memory_is_said_before_the_start(checkpoint, packed, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(room, "free_memory", lambda device: 900_000)
    assert main(pretrain_command(checkpoint, packed, tmp_path / "run", train__micro_batch_size=4)) == 0
    assert "warning: a step needs about" in (told := capsys.readouterr().err)
    assert "--train.micro_batch_size" in told


@pytest.mark.parametrize(
    ("available", "advice"),
    [
        (40e9, "--train.micro_batch_size 5 fits"),
        (30e9, "--speed.activation_checkpointing true with --train.micro_batch_size"),
        (20e9, "the model and its optimizer alone take 29.1 GB"),
    ],
)
def test_advice(available, advice, caplog, monkeypatch):
    monkeypatch.setattr(room, "free_memory", lambda device: int(available))
    kernels, cpu = Kernels("liger", True), torch.device("cpu")
    plan = room.RunPlan(1, 1, 1, 1, 2048, 1, 1, parameters=1_815_638_400, flops_per_token=1.0, peak_flops=None)
    args = TrainingArgs(train=TrainArgs(micro_batch_size=8))
    room.ResourceEstimate(OPENLLAMA_13, plan, args, "bf16-mixed", kernels, cpu).warn()
    assert advice in caplog.text


def test_a_full_disk_is_said_before_the_start(checkpoint, packed, tmp_path, monkeypatch, capsys):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage(0, 0, 100_000))
    assert main(pretrain_command(checkpoint, packed, tmp_path / "run")) == 2
    assert "GB are free on its disk; make room" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
