"""Folders appear whole, have one writer, and what killed writers left goes with the next owner."""

import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from inheritune_lit.errors import UserError
from inheritune_lit.io.folders import LOCK, check_vacant, new_folder, own_folder, remove, replace_text


def run(code: str, folder: Path, **kwargs) -> subprocess.Popen:
    """Start a process that has the folder as ``out``."""
    code = "import sys, os, time\nfrom pathlib import Path\nfrom inheritune_lit.io.folders import *\n" + (
        "out = Path(sys.argv[1])\n" + textwrap.dedent(code)
    )
    return subprocess.Popen([sys.executable, "-c", code, str(folder)], text=True, stdout=subprocess.PIPE, **kwargs)


def fill(out: Path) -> None:
    with new_folder(out) as staging:
        (staging / "weights").write_text("all")


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("owner", ["with own_folder(out):", "with new_folder(out) as staging:"])
def test_a_second_process_is_told_who_is_at_work(tmp_path, owner):
    out = tmp_path / "out"
    first = run(f"{owner}\n    print('in', flush=True)\n    time.sleep(60)", out)
    assert first.stdout.readline() == "in\n"
    with pytest.raises(UserError, match=rf"process {first.pid} on \S+ is at work on .*out; wait for it"):
        fill(out) if "new" in owner else own_folder(out).__enter__()
    first.send_signal(signal.SIGKILL)
    first.wait()
    if "own" in owner:
        with own_folder(out):
            (out / "kept").touch()
        assert listing(tmp_path) == ["out", "out/kept"]
    else:
        fill(out)
        assert listing(tmp_path) == ["out", "out/weights"]


@pytest.mark.parametrize("event", ["os.rename", "os.remove", "os.rmdir", "open", "os.mkdir", "shutil.rmtree"])
@pytest.mark.parametrize("replace", [False, True])
def test_killed_at_any_event_the_next_call_leaves_the_same(tmp_path, event, replace):
    """SIGKILL just before the n-th event, for every n until the process survives."""
    code = f"""
    seen = 0
    def hook(event, args):
        global seen
        if event == {event!r} and (event != "open" or "w" in str(args[1]) or "a" in str(args[1])):
            seen += 1
            if seen == int(sys.argv[0] or os.environ["N"]): os.kill(os.getpid(), 9)
    sys.argv[0] = ""
    sys.addaudithook(hook)
    with new_folder(out, replace={replace}) as staging:
        (staging / "weights").write_text("new")
        (staging / "inner").mkdir()
        replace_text(staging / "inner" / "more", "new")
    """
    for n in range(1, 30):
        above = tmp_path / str(n)
        out = above / "out"
        if replace:
            out.mkdir(parents=True)
            (out / "old").touch()
        died = run(code, out, env=os.environ | {"N": str(n)}).wait() == -signal.SIGKILL
        with own_folder(above):
            names = listing(above)
            assert not any(".old" in name or ".partial" in name for name in names), names
            present = [name for name in names if name.startswith("out/")]
            whole = ["out/inner", "out/inner/more", "out/weights"]
            assert present in ([], whole) if not replace else present in (["out/old"], whole)
        if not died:
            assert n > 1 or event in ("os.remove", "os.rmdir", "shutil.rmtree", "os.mkdir"), "no event was seen"
            return
    raise AssertionError("the process never survived")


def test_only_what_nobody_is_making_is_removed(tmp_path):
    fill(tmp_path / "left")
    os.rename(tmp_path / "left", tmp_path / ".left.partial")
    (tmp_path / ".notes").touch()
    (tmp_path / "other.partial").touch()
    maker = run("with new_folder(out) as staging:\n    print('in', flush=True)\n    input()", tmp_path / "live",
                stdin=subprocess.PIPE)  # fmt: skip
    assert maker.stdout.readline() == "in\n"
    with own_folder(tmp_path):
        assert listing(tmp_path) == [".live.partial", f".live.partial/{LOCK}", LOCK, ".notes", "other.partial"]
    maker.communicate("\n")
    assert listing(tmp_path) == [".notes", "live", "other.partial"]


def test_a_link_to_an_empty_folder_stays_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "out").symlink_to("real")
    fill(tmp_path / "out")
    assert (tmp_path / "out").is_symlink() and listing(tmp_path / "real") == ["weights"]


def test_folders_that_cannot_be_replaced_are_refused_at_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for out in (Path("."), tmp_path, Path("a/..")):
        (tmp_path / "a").mkdir(exist_ok=True)
        (tmp_path / "a").rmdir() if out != Path("a/..") else None
        with pytest.raises(UserError, match=r"current folder|already holds"):
            check_vacant(out)


@pytest.mark.parametrize("kind", [["-t", "tmpfs", "none"], ["--bind", "other"]])
def test_a_mount_point_is_refused_at_once(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "an out").mkdir()
    (tmp_path / "other").mkdir()
    if shutil.which("mount") is None or subprocess.run(["mount", *kind, "an out"], capture_output=True).returncode:
        pytest.skip("mounting needs permission")
    try:
        with pytest.raises(UserError, match="an out is a mount point; give a folder in it"):
            check_vacant(Path("an out"))
        fill(Path("an out") / "inner")
        assert listing(tmp_path / "an out") == ["inner", "inner/weights"]
    finally:
        subprocess.run(["umount", "an out"], check=True)


def test_long_work_is_continued_in_its_staging_folder(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(RuntimeError), new_folder(out, keep=True) as staging:
        (staging / "half").touch()
        raise RuntimeError
    assert listing(tmp_path) == [".out.partial", ".out.partial/half"]
    with new_folder(out, keep=True) as staging:
        (staging / "half").rename(staging / "whole")
    assert listing(tmp_path) == ["out", "out/whole"]
    with pytest.raises(RuntimeError), new_folder(tmp_path / "other", keep=True):
        raise RuntimeError
    assert listing(tmp_path) == ["out", "out/whole"]


def test_an_owner_takes_back_a_folder_into_which_nothing_came(tmp_path):
    with pytest.raises(RuntimeError), own_folder(tmp_path / "a" / "b"):
        raise RuntimeError
    assert not (tmp_path / "a" / "b").exists()
    with own_folder(tmp_path / "c"):
        replace_text(tmp_path / "c" / "x", "text")
    assert listing(tmp_path / "c") == ["x"]


def test_a_removed_folder_leaves_its_name_first(tmp_path, monkeypatch):
    (tmp_path / "step" / "inner").mkdir(parents=True)

    def refuse(path):
        raise OSError("killed")

    monkeypatch.setattr(shutil, "rmtree", lambda path, ignore_errors=False: None if ignore_errors else refuse(path))
    with pytest.raises(OSError):
        remove(tmp_path / "step")
    assert not (tmp_path / "step").exists()
