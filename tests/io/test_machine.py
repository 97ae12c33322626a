"""What the machine lacks is one line; closed, broken and narrow streams lose nothing."""

import errno
import os
import subprocess
import sys

import pytest

from inheritune_lit.errors import UserError
from inheritune_lit.io.machine import explain_machine


def test_errors_of_the_machine_are_explained_and_faults_are_not(tmp_path):
    with pytest.raises(OSError) as raised:
        (tmp_path / "a").rename(tmp_path / "b")
    assert explain_machine(raised.value) == (
        f"{tmp_path / 'a'} to {tmp_path / 'b'}: No such file or directory; check the path"
    )
    assert "free space" in explain_machine(OSError(errno.ENOSPC, "No space left on device", "x"))
    assert "memory" in explain_machine(MemoryError())
    assert "memory" in explain_machine(RuntimeError("can't start new thread"))
    for fault in (OSError("no number"), RuntimeError("else"), ValueError(), UserError("x")):
        assert explain_machine(fault) is None


def shell(command: str, **kwargs) -> subprocess.CompletedProcess:
    command = command.replace("inheritune", f"{sys.executable} -m inheritune_lit")
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, **kwargs)


def test_closed_streams(tmp_path):
    assert shell("inheritune recipes 2>&-").stdout.count("\n") > 5
    assert shell("inheritune recipes 2>&- <&-").returncode == 0
    assert shell("inheritune recipes >&-").returncode == 0
    assert shell("inheritune nonsense 2>&- <&-").returncode == 2


def test_a_reader_that_has_gone_ends_it_quietly():
    done = shell("inheritune references | head -1; echo ${PIPESTATUS[0]}")
    assert done.stderr == "" and done.stdout.splitlines()[-1] in ("0", "141")


def test_ascii_streams_show_what_they_can(tmp_path):
    name = "ein\u00e9\x1b[31m"
    done = shell(f"inheritune export '{name}' --out_dir out", env=os.environ | {"PYTHONIOENCODING": "ascii"},
                 cwd=tmp_path)  # fmt: skip
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "ein\\xe9\\x1b[31m" in done.stderr


def test_a_folder_that_is_gone(tmp_path):
    done = shell("mkdir x; cd x; rmdir ../x; inheritune slice --ref gpt2 --n 1 --out_dir out", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith("inheritune: error: the current folder has been removed; change")


def test_progress_goes_on_without_a_reader():
    code = (
        "import sys, time\nfrom inheritune_lit.io.progress import Progress\n"
        "with Progress('work', 9, 'step', interval_s=0) as progress:\n"
        "    for _ in range(9):\n        progress.update(); time.sleep(0.05)\n"
        "open(sys.argv[1], 'w').write('done')\n"
    )
    read, write = os.pipe()
    os.close(read)
    path = "/dev/fd/1"
    done = subprocess.run([sys.executable, "-c", code, path], stderr=write, stdout=subprocess.PIPE, text=True)
    assert done.stdout == "done" and done.returncode == 0
