"""Damaged files of every kind, for every command: exit 0 or 2, one line, nothing left, and never long.

``INHERITUNE_TRIALS`` sets how many; ``INHERITUNE_SEED`` begins elsewhere. A failure names the numbers to try again.
"""

import os
import random
import time
import traceback
from pathlib import Path

import pytest
from damage import TRIALS, copy_world, damage, listing, make_world

from inheritune_lit.cli import main

COUNT, SEED = int(os.environ.get("INHERITUNE_TRIALS", "120")), int(os.environ.get("INHERITUNE_SEED", "1"))
LONG_S = 60
"""A loaded machine takes a second for the longest trial; what reads a device or a pipe never ends."""


@pytest.fixture(scope="module")
def world(tmp_path_factory, tokenizer_dir) -> Path:
    folder, before = tmp_path_factory.mktemp("world"), Path.cwd()
    make_world(folder, tokenizer_dir)
    os.chdir(before)
    return folder


def attempt(number: int, world: Path, folder: Path, capfd) -> str | None:
    """Run one trial; returns what was wrong with it."""
    draw = random.Random(number)
    trial = draw.choices(TRIALS, [each.weight for each in TRIALS])[0]
    copy_world(world, folder)
    os.chdir(folder)
    files = sorted(path for pattern in trial.files for path in Path().glob(pattern) if path.is_file())
    path = draw.choice(files)
    what = f"trial {number}: {path} {damage(path, draw).strip()}, {trial.command[:60]}"
    before, start = listing(folder), time.monotonic()
    capfd.readouterr()
    try:
        code = main(trial.command.split())
    except SystemExit as stop:
        return f"{what}: SystemExit {stop.code}"
    except BaseException:
        return f"{what}: {traceback.format_exc().strip().splitlines()[-1][:200]} {traceback.format_exc()[-700:-1]}"
    seconds = time.monotonic() - start
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("inheritune: error:")]
    if seconds > LONG_S:
        return f"{what}: {seconds:.0f} s"
    if code not in (0, 2) or len(errors) != (code == 2):
        return f"{what}: exit code {code} with {len(errors)} lines of error"
    after = {name: size for name, size in listing(folder).items() if name.split("/")[0] != (trial.own or "out")}
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)} - {"out"}
    changed = {name for name in changed if name.split("/")[0] not in (trial.own, ".out.prepare")}  # shards are kept
    if changed:
        return f"{what}: exit code {code} and changed {sorted(changed)[:5]}"
    if code == 2 and "pretrain" not in trial.command and (folder / "out").exists():
        return f"{what}: exit code 2 and left {sorted(os.listdir('out'))[:5]}: {errors}"
    return None


def test_damaged_files(world, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    faults = []
    for number in range(SEED, SEED + COUNT):
        if fault := attempt(number, world, tmp_path / "here", capfd):
            faults.append(fault)
            with capfd.disabled():
                print(fault, flush=True)
    os.chdir(tmp_path)
    assert not faults, f"{len(faults)} of {COUNT}:\n" + "\n".join(faults)
