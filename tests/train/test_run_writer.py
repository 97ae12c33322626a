"""A run folder has one writer, and no kill leaves anything else in it than an uninterrupted run."""

import os
import random
import shutil
import signal
import sys

import pytest
import torch
from train_command import losses_of, pretrain_command

from inheritune_lit.cli import main
from inheritune_lit.io.folders import own_folder
from inheritune_lit.model.load import load_state

SHORT = {"train__max_steps": 6, "train__lr_warmup_steps": 1, "train__log_interval": 1, "train__save_interval": 2}
SHORT |= {"eval__interval": 2, "eval__max_iters": 1, "train__keep_last": 2, "train__keep_best": "true"}


@pytest.fixture
def command(checkpoint, packed, tmp_path):
    def build(**changes) -> list[str]:
        return pretrain_command(checkpoint, packed, **{"out_dir": tmp_path / "run", **SHORT, **changes})

    return build


def names(folder) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def killed_at(event: int, args: list[str], folder: str) -> bool:
    """Run a command line in a copy of this process that is killed before its n-th change of names in a folder."""
    pid = os.fork()
    if pid == 0:
        seen = [0]

        def hook(name: str, values: tuple) -> None:
            writes = name == "open" and isinstance(values[1], str) and set(values[1]) & set("wax")
            if (writes or name in ("os.rename", "os.mkdir", "os.remove", "os.rmdir")) and folder in str(values[0]):
                seen[0] += 1
                if seen[0] == event:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        os._exit(main(args))
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def test_kills_at_any_event_leave_the_run_of_none(command, tmp_path):
    torch.set_num_threads(1)
    assert main(command(out_dir=tmp_path / "whole")) == 0
    expected = load_state(tmp_path / "whole" / "final")
    draw, kills = random.Random(3), 0
    for _ in range(2):
        run, event = tmp_path / "run", draw.randint(1, 40)
        while killed_at(event, command(), str(run)):  # again and again, further on each time
            kills += 1
            event = event + draw.randint(1, 40)
            visible = [name for name in names(run) if not name.split("/")[0].startswith(".")] if run.is_dir() else []
            for folder in {name.split("/")[0] for name in visible} & {"best", "final", "step-00000002"}:
                assert (run / folder / "lit_model.pth").is_file() and (run / folder / "inheritune.json").is_file()
        assert names(run) == names(tmp_path / "whole")
        assert losses_of(run) == losses_of(tmp_path / "whole")
        assert all(torch.equal(tensor, expected[name]) for name, tensor in load_state(run / "final").items())
        shutil.rmtree(run)
    assert kills > 4


@pytest.mark.parametrize("begun", [False, True])
def test_a_second_process_says_who_is_at_work_and_writes_nothing(command, tmp_path, capsys, begun):
    run = tmp_path / "run"
    if begun:
        assert main([*command(), "--train.max_time", "0.001"]) == 0
    with own_folder(run):
        before = {name: (run / name).stat().st_mtime_ns for name in names(run)}
        assert main(command()) == 2
        assert {name: (run / name).stat().st_mtime_ns for name in names(run)} == before
    told = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(told) == 1
    assert f"process {os.getpid()} on " in told[0] and f"is at work on {run}; wait for it" in told[0]
    assert main(command()) == 0


def test_what_killed_writers_left_goes_and_nothing_else(command, tmp_path):
    run = tmp_path / "run"
    assert main([*command(), "--train.max_time", "0.001"]) == 0
    for left in (".final.partial", ".step-00000002.partial", ".best.partial", ".state.partial"):
        (run / left).mkdir()
        (run / left / "lit_model.pth").write_bytes(b"half")
    (run / ".state.pth.partial").write_bytes(b"half")
    (run / "notes.txt").write_text("mine")
    (run / "step-00000001").mkdir(exist_ok=True)  # as a larger --train.keep_last kept it
    assert main(command()) == 0
    folders = {"best", "final", "step-00000002", "step-00000004"}
    assert {path.name for path in run.iterdir()} == folders | {"inheritune.json", "metrics.csv", "notes.txt"}


def test_a_folder_of_something_else_is_left_as_it_is(command, tmp_path, capsys):
    run = tmp_path / "run"
    (run / ".mine.partial").mkdir(parents=True)
    (run / "thesis.txt").write_text("all of it")
    assert main(command()) == 2
    assert "already holds files" in capsys.readouterr().err
    assert names(run) == [".mine.partial", "thesis.txt"]


def test_a_finished_run_is_told_where_nothing_can_be_written(command, tmp_path, capsys, monkeypatch):
    assert main(command()) == 0

    def refuse(*args: object) -> None:
        raise PermissionError(30, "Read-only file system")

    monkeypatch.setattr("inheritune_lit.io.folders._take", refuse)
    assert main(command()) == 0
    assert "is finished: 6 steps" in capsys.readouterr().out


@pytest.fixture
def teach(checkpoint, packed, tmp_path):
    words = f"teach --teacher {checkpoint} --data {packed} --out_dir {tmp_path / 'taught'} --max_seq_length 16"
    return [*words.split(), "--top_k", "2", "--batch_size", "64"]


def test_teach_has_one_writer_and_continues_where_it_was_killed(teach, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("inheritune_lit.train.teach._SAVE_BLOCKS", 64)
    working = tmp_path / ".taught.partial"
    with own_folder(working):
        (working / "mine").write_text("x")
        assert main(teach) == 2
        assert f"is at work on {tmp_path / 'taught'}" in capsys.readouterr().err.splitlines()[-1]
    shutil.rmtree(working)
    assert main(teach) == 0
    whole = {path.name: path.read_bytes() for path in (tmp_path / "taught").glob("*.bin")}
    for event in (2, 6, 7, 8, 9):
        shutil.rmtree(tmp_path / "taught")
        while killed_at(event, teach, str(working)):
            event += 2
        assert names(tmp_path / "taught") == ["ids.bin", "inheritune.json", "logprobs.bin"]
        assert {path.name: path.read_bytes() for path in (tmp_path / "taught").glob("*.bin")} == whole
        assert not working.exists()


@pytest.mark.parametrize("name", ["inheritune.json", "done.json"])
@pytest.mark.parametrize("damage", ["", "[]", "{}", "null", '{"settings": {}, "blocks": "2"}', "[" * 9999])
def test_a_damaged_working_folder_of_teach_is_one_line(teach, tmp_path, capsys, damage, name):
    working = tmp_path / ".taught.partial"
    working.mkdir()
    (working / name).write_text(damage)
    assert main(teach) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"remove {working}" in line or "was started with" in line or f"{working} holds {name}" in line
    shutil.rmtree(working)
    assert main(teach) == 0
