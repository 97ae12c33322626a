"""Every command, killed just before any of its file-system events: the same command ends as if nothing had happened.

``INHERITUNE_KILLS`` sets how often each command is killed. Processes are forked, so that each starts at once.
"""

import os
import random
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
from damage import TRAIN, copy_world, listing, make_world

from inheritune_lit.cli import main

KILLS = int(os.environ.get("INHERITUNE_KILLS", "3"))
COMMANDS = {
    "slice": "slice hf --n 1 --out_dir out",
    "export": "export lit --out_dir out",
    "prepare": "prepare --source text --tokenizer_dir hf --num_workers 1 --out_dir out",
    "pretrain": f"pretrain lit --data data --out_dir out {TRAIN} --train.save_interval 1 --train.keep_last 1 "
    "--train.keep_best true",
    "teach": "teach lit --data data --out_dir out --max_seq_length 16 --top_k 2",
    "eval": "eval lit --tasks task/next_word.yaml --out_dir out",
    "analyze": "analyze lit --data data --num_sequences 1 --seq_length 8 --out_dir out",
    "search": "search lit --data data --num_sequences 1 --seq_length 8 --out_dir out",
    "report": "report run --out_dir out",
    "init": "init --ref openllama-3b --n 13 --gpu a100-80gb --tokens 1B --out_file out/recipe.yaml",
}
SAME_BYTES = (".pth", ".bin", ".idx", ".safetensors", ".npy")
EVENTS = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree")


def fork(work: Callable[[], int]) -> int:
    """Run something in a forked process; returns its exit code, negative for the signal that ended it."""
    child = os.fork()
    if child == 0:
        code = 99
        try:
            code = work()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def run(command: str, die_at: int = 0, count_into: Path | None = None) -> int:
    """Run a command, killed just before its n-th event that changes the file system."""
    seen = 0

    def hook(event: str, args: tuple) -> None:
        nonlocal seen
        writes = event == "open" and isinstance(args[1], str) and any(mode in args[1] for mode in "wax+")
        if (event in EVENTS or writes) and not isinstance(args[0], int) and "/dev/" not in os.fsdecode(args[0]):
            seen += 1
            if seen == die_at:
                os.kill(os.getpid(), signal.SIGKILL)

    def work() -> int:
        sys.addaudithook(hook)
        code = main(command.split())
        events = seen
        if count_into:
            count_into.write_text(str(events))
        return code

    return fork(work)


@pytest.fixture(scope="module")
def world(tmp_path_factory, tokenizer_dir) -> Path:
    folder = tmp_path_factory.mktemp("world")

    def work() -> int:
        make_world(folder, tokenizer_dir)
        return 0

    assert fork(work) == 0
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Names of all files, and the bytes of those in which no time stands."""
    return {
        name: (folder / name).read_bytes() if name.endswith(SAME_BYTES) else b""
        for name in listing(folder)
        if (folder / name).is_file()
    }


@pytest.mark.parametrize("name", COMMANDS)
def test_killed_anywhere_the_same_command_ends_the_same(name, world, tmp_path, monkeypatch):
    here, draw = tmp_path / "here", random.Random(name)
    copy_world(world, here)
    monkeypatch.chdir(here)
    assert run(COMMANDS[name], count_into=tmp_path / "events") == 0
    events, whole = int((tmp_path / "events").read_text()), contents(here)
    assert events > 0
    for at in sorted(draw.sample(range(1, events + 1), min(KILLS, events))):
        monkeypatch.chdir(tmp_path)
        copy_world(world, here)
        monkeypatch.chdir(here)
        code = run(COMMANDS[name], die_at=at)
        assert code == -signal.SIGKILL, f"event {at} of {events}: exit code {code}"
        killed = contents(here)
        code = run(COMMANDS[name])
        if (
            code == 2
            and "out" in {path.split("/")[0] for path in killed}
            and name in ("slice", "export", "teach", "init")
        ):
            code = 0  # it was killed when all was done: the folder is there, and the same command says so
        assert code == 0, f"event {at} of {events}: the same command ends with exit code {code}"
        now = contents(here)
        assert now.keys() == whole.keys(), f"event {at} of {events}: {sorted(now.keys() ^ whole.keys())}"
        assert now == whole, f"event {at} of {events}: {[path for path in now if now[path] != whole[path]]}"
