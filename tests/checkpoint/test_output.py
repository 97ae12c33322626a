"""New folders appear whole or not at all."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from inheritune_lit.errors import UserError
from inheritune_lit.io.folders import (
    check_vacant,
    explain_full_disk,
    make_folder,
    new_folder,
    replace_file,
    replace_text,
)


def test_folder_appears_with_its_content(tmp_path):
    out = tmp_path / "a" / "b"
    with new_folder(out) as staging:
        (staging / "file").write_text("x")
        assert not out.exists()
    assert (out / "file").read_text() == "x"
    assert os.listdir(out.parent) == ["b"]


def test_folder_has_the_permissions_of_a_plain_mkdir(tmp_path):
    (tmp_path / "plain").mkdir()
    with new_folder(tmp_path / "out"):
        pass
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_failure_leaves_nothing(tmp_path, error):
    with pytest.raises(error), new_folder(tmp_path / "out") as staging:
        (staging / "file").write_text("x")
        raise error
    assert list(tmp_path.iterdir()) == []


def test_occupied_folder_is_refused_and_untouched(tmp_path):
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(UserError, match="already holds files"), new_folder(tmp_path):
        pass
    assert (tmp_path / "mine").read_text() == "precious"


def test_empty_folder_is_taken(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    with new_folder(out) as staging:
        (staging / "file").write_text("x")
    assert (out / "file").exists()


def test_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "out").write_text("x")
    with pytest.raises(UserError, match="is a file"), new_folder(tmp_path / "out"):
        pass


def test_folder_filled_meanwhile_by_another_process_is_kept(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(UserError, match="already holds files"), new_folder(out):
        out.mkdir()
        (out / "theirs").write_text("x")
    assert os.listdir(tmp_path) == ["out"]
    assert os.listdir(out) == ["theirs"]


def test_killed_process_never_shows_the_folder(tmp_path):
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom inheritune_lit.io.folders import new_folder\n"
        "with new_folder(Path(sys.argv[1])) as staging:\n"
        "    (staging / 'half').write_text('x')\n    print('ready', flush=True)\n    time.sleep(60)\n"
    )
    out = tmp_path / "out"
    process = subprocess.Popen([sys.executable, "-c", code, str(out)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(0.1)
    assert not out.exists()


def test_folder_below_a_file_is_refused_before_the_work(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="file is not a folder; give another --out_dir"):
        check_vacant(tmp_path / "file" / "a" / "out")
    check_vacant(tmp_path / "a" / "b" / "out")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folder_without_permission_is_refused_before_the_work(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="no permission to write"):
        check_vacant(tmp_path / "out")


def test_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"cannot write out: (Not a directory|File exists)"):
        make_folder(tmp_path / "file" / "a", "out")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux's /dev/full")
@pytest.mark.parametrize("write", [np.ones(1 << 16).tofile, lambda file: (file.write(b"x" * 9999), file.flush())])
def test_full_disk_is_one_line(write):
    told = pytest.raises(UserError, match="free space or give another --out_dir")
    with told, explain_full_disk("out"), open("/dev/full", "wb") as file:
        write(file)


def test_file_is_replaced(tmp_path):
    path = tmp_path / "file"
    replace_text(path, "old")
    replace_text(path, "né")
    assert path.read_bytes() == "né".encode()
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_failure_keeps_the_old_file(tmp_path, error):
    path = tmp_path / "file"
    path.write_text("old")

    def write(aside):
        aside.write_text("ne")
        raise error

    with pytest.raises(error):
        replace_file(path, write)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]
