"""Scripts on simulated CUDA, each in a process of its own, and what they need."""

import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_cuda import unavailable
from gpu_watch import by_function
from tiny import make_checkpoint, make_packed, write_jsonl

HERE = Path(__file__).parent
Found = dict[str, Any]


def _run(script: str, *args: object) -> Found:
    if (reason := unavailable()) is not None:
        pytest.skip(reason)
    command = [sys.executable, str(HERE / script), *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="session")
def simulate() -> Callable[..., Found]:
    """Runs ``simulate.py`` with options of its command line, ``speed__compile="false"`` for ``--speed.compile``."""

    def run(**options: object) -> Found:
        flags = ((f"--{name.replace('__', '.')}", value) for name, value in options.items())
        found = _run("simulate.py", *(part for flag in flags for part in flag))
        return {**found, "waits": by_function(found["waits"])}

    return run


@pytest.fixture(scope="session")
def inputs(tmp_path_factory, tokenizer_dir) -> Path:
    """A checkpoint of two layers, packed data, and rows of PIQA."""
    folder = tmp_path_factory.mktemp("cuda")
    make_checkpoint(folder / "checkpoint", tokenizer_dir, block_size=512)
    make_packed(folder / "packed", tokenizer_dir)
    draw = random.Random(0)

    def words() -> str:
        return " ".join(draw.choices(["heat", "the", "cell", "opens", "a", "door"], k=5))

    rows = [{"goal": words(), "sol1": words(), "sol2": words(), "label": 0} for _ in range(4)]
    write_jsonl(folder / "tasks/piqa/validation.jsonl", rows)
    return folder


@pytest.fixture(scope="session")
def scenarios(inputs) -> Found:
    """What all of ``scenarios.py`` found, in one process: most of its time goes into imports."""
    return _run("scenarios.py", inputs)
