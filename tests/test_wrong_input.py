"""Wrong input that any command may get: one line that says what is wrong, exit code 2, nothing written."""

from itertools import pairwise

import pytest

from inheritune_lit.cli import COMMANDS, main

WITH_FLAGS = [name for name in COMMANDS if name not in ("references", "recipes")]
BOMB = "a: &a [x, x]\n" + "".join(f"{c}: &{c} [*{b}, *{b}, *{b}, *{b}]\n" for b, c in pairwise("abcdefghijklmno"))
FILES = {
    "unknown.yaml": (b"lairs: 3\n", "there is no flag --lairs"),
    "list.yaml": (b"- a\n- b\n", "list.yaml can't be read as a recipe of --config (it holds a list"),
    "broken.yaml": (b"a: [1,2", "broken.yaml can't be read as a recipe of --config (line 1: "),
    "bomb.yaml": (BOMB.encode(), "its aliases stand for too many values"),
    "deep.yaml": (b"a: " + b"[" * 50_000, "nested too deep"),
    "digits.yaml": (b"seed: " + b"9" * 5000, "digits"),
    "twice.yaml": (b"seed: 1\nseed: 2\n", "'seed' stands in it twice"),
    "binary.yaml": (b"\xff\xfe\x00", "binary.yaml can't be read as a recipe"),
    "text": (b"hello", "text can't be read as a recipe of --config (it holds a str, not names and values)"),
}


def refused(capsys, *words: str) -> str:
    assert main(list(words)) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("inheritune: error: ") and printed.err.count("\n") == 1
    return printed.err


@pytest.mark.parametrize("name", COMMANDS)
def test_unknown_flag(name, capsys):
    assert "--frobnicate" in refused(capsys, name, "--frobnicate", "3")


@pytest.mark.parametrize("name", WITH_FLAGS)
def test_config(name, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "--config none.yaml: there is no such file" in refused(capsys, name, "--config", "none.yaml")
    (tmp_path / "folder").mkdir()
    assert "folder can't be read as a recipe of --config (Is a directory)" in refused(
        capsys, name, "--config", "folder"
    )
    for file, (content, told) in FILES.items():
        (tmp_path / file).write_bytes(content)
        assert told in refused(capsys, name, f"--config={file}")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["folder", *FILES])


@pytest.mark.parametrize("line", [[], ["frob"], ["--frob"], ["slice", "pretrain"]])
def test_no_command(line, capsys):
    assert "see `inheritune" in refused(capsys, *line)
