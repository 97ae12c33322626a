"""The commands of docs/distributed.md on processes of this machine: two nodes of one device each give one's losses."""

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from page import ROOT, bash_lines
from tiny import make_checkpoint, make_packed

from inheritune_lit.train.metrics import read_metrics

PAGE = (ROOT / "docs" / "distributed.md").read_text()
STEPS = 30
SMALLER = (
    f"--train.max_seq_length 16 --train.global_batch_size 8 --train.micro_batch_size 2 --train.max_steps {STEPS} "
    "--train.epochs null --train.max_tokens null --train.lr_warmup_steps 1 --train.log_interval 1 "
    "--eval.interval 10 --eval.max_iters 1 --precision 32-true --data data/packed"
)
SRUN = """#!{python}
# Starts a task a node on this machine, with SLURM's variables, and hands signals on as srun does.
import os, signal, subprocess, sys
def task(number):
    mine = {{"SLURM_PROCID": number, "SLURM_NODEID": number, "SLURM_LOCALID": 0, "SLURM_NTASKS": 2, "SLURM_NNODES": 2,
             "SLURM_NTASKS_PER_NODE": 1, "SLURM_JOB_ID": os.getpid(), "SLURM_JOB_NAME": "train",
             "SLURM_NODELIST": "localhost", "SLURM_JOB_NODELIST": "localhost"}}
    return subprocess.Popen(sys.argv[1:], env={{**os.environ, **{{k: str(v) for k, v in mine.items()}}}})
tasks = [task(number) for number in range(2)]
signal.signal(signal.SIGTERM, lambda *_: [one.send_signal(signal.SIGTERM) for one in tasks])
sys.exit(max(one.wait() for one in tasks))
"""


@pytest.fixture
def folder(tmp_path, tokenizer_dir, monkeypatch) -> Path:
    """Where the page's commands find a tiny model and data, and programs named inheritune, torchrun and srun."""
    make_checkpoint(tmp_path / "checkpoints/openlm-research/open_llama_3b-13l", tokenizer_dir)
    (tmp_path / "data").mkdir()
    make_packed(tmp_path / "data/packed", tokenizer_dir)
    programs = {
        "inheritune": f'#!/bin/sh\nexec {sys.executable} -m inheritune_lit "$@"\n',
        "torchrun": f'#!/bin/sh\nexec {sys.executable} -m torch.distributed.run "$@"\n',
        "srun": SRUN.format(python=sys.executable),
    }
    (tmp_path / "bin").mkdir()
    for name, text in programs.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(start: str, nodes: int, devices: int, more: str = "") -> str:
    """The page's command line that begins so, on fewer devices."""
    (line,) = [line for line in bash_lines(PAGE) if line.startswith(start)]
    line = re.sub(r"--(devices|nproc_per_node) 4", rf"--\1 {devices}", line)
    return f"{line.replace('--nnodes 2', f'--nnodes {nodes}')} {SMALLER} --out_dir {more}"


def start(line: str) -> subprocess.Popen:
    return subprocess.Popen(shlex.split(line), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(*running: subprocess.Popen) -> list[str]:
    printed = [one.communicate(timeout=240)[0] for one in running]
    assert [one.returncode for one in running] == [0] * len(running), "\n".join(printed)
    return printed


def losses(run: str) -> list[list[float]]:
    columns = ("step", "tokens", "loss", "val_loss")
    rows = read_metrics(Path(run) / "metrics.csv")
    return [[float(row[column]) for column in columns if row[column]] for row in rows]


def assert_equal(run: str) -> None:
    expected, found = losses("one"), losses(run)
    assert len(found) == len(expected) > STEPS
    for one, other in zip(expected, found, strict=True):
        assert other == pytest.approx(one, rel=1e-4, abs=1e-5)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


@pytest.mark.slow
def test_page(folder):
    finish(start(command("inheritune pretrain", 1, 1, "one")))

    finish(start(command("inheritune pretrain", 1, 2, "two")))
    assert_equal("two")

    line = command("torchrun", 2, 1, "nodes").replace("$HEAD:29500", f"localhost:{free_port()}")
    printed = finish(start(line), start(line))
    assert sum(text.count("wrote ") for text in printed) == 1  # one process of all speaks
    assert_equal("nodes")

    script = PAGE.partition("Under SLURM:")[2].partition("```bash\n")[2].partition("```")[0]
    assert "#SBATCH --nodes=2\n" in script and "#SBATCH --signal=TERM@" in script
    line = command("srun", 2, 1, "slurm")
    stopped = start(line)
    while not (folder / "slurm/metrics.csv").is_file() or len(losses("slurm")) < 5:
        assert stopped.poll() is None
        time.sleep(0.02)
    stopped.send_signal(signal.SIGTERM)
    assert "saved; the same command continues" in finish(stopped)[0]
    assert 5 <= len(losses("slurm")) < STEPS
    finish(start(line))
    assert_equal("slurm")


@pytest.mark.slow
def test_sharded_within_nodes_and_replicated_between_them(folder):
    finish(start(command("inheritune pretrain", 1, 1, "one")))
    line = command("torchrun", 2, 2, "hybrid --strategy hybrid").replace("$HEAD:29500", f"localhost:{free_port()}")
    finish(start(line), start(line))
    assert_equal("hybrid")
