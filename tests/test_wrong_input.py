"""Wrong input that any command may get: one line that says what is wrong, exit code 2, nothing written."""

import pytest

from inheritune_lit.cli import COMMANDS, main

WITH_FLAGS = [name for name in COMMANDS if name not in ("references", "recipes")]
FILES = {
    "unknown.yaml": (b"lairs: 3\n", "there is no flag --lairs"),
    "list.yaml": (b"- a\n- b\n", "list.yaml holds no flags"),
    "broken.yaml": (b"a: [1,2", "broken.yaml is not a valid YAML file"),
    "binary.yaml": (b"\xff\xfe\x00", "binary.yaml is not a valid YAML file"),
    "text": (b"hello", "text holds no flags"),
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
    assert "--config folder is not a valid YAML file" in refused(capsys, name, "--config", "folder")
    for file, (content, told) in FILES.items():
        (tmp_path / file).write_bytes(content)
        assert told in refused(capsys, name, f"--config={file}")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["folder", *FILES])


@pytest.mark.parametrize("line", [[], ["frob"], ["--frob"], ["slice", "pretrain"]])
def test_no_command(line, capsys):
    assert "see `inheritune" in refused(capsys, *line)
