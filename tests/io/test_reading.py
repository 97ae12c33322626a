"""Small files of others: bounded, plain values only, refused in one line."""

import os
import resource
import time

import pytest
import yaml

from inheritune_lit.errors import UserError, printable
from inheritune_lit.io.reading import open_regular, read_json, read_text, read_yaml

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10)
)
MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n}\n  <<: [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10))


@pytest.mark.parametrize(
    "read, content, problem",
    [
        (read_json, "", "Expecting value"),
        (read_json, "[1]", "holds a list, not names and values"),
        (read_json, "[" * 200_000, "nested too deep"),
        (read_json, '{"a": ' + "9" * 6000 + "}", "4300 digits"),
        (read_json, "\xff\xfe", "Expecting value"),
        (read_yaml, "", "holds a NoneType"),
        (read_yaml, "a: [1", "line 1: expected"),
        (read_yaml, "[" * 50_000, "nested too deep"),
        (read_yaml, BOMB, "too many values"),
        (read_yaml, MERGES, "too many values"),
        (read_yaml, "a: &a [*a]", "too many values"),
        (read_yaml, "a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
        (read_yaml, "a: {no: 1, 'no': 2}", "'no' stands in it twice"),
        (read_yaml, "{[1]: 2}", "unhashable"),
        (read_yaml, "a: !!timestamp 2026-99-99", "month must be in 1..12"),
    ],
)
def test_what_is_no_mapping_of_plain_values_is_refused(read, content, problem, tmp_path):
    path = tmp_path / "file"
    path.write_text(content, encoding="utf-8")
    start = time.process_time()
    with pytest.raises(UserError, match=problem) as raised:
        read(path, remedy="make it again")
    assert time.process_time() - start < 20, "bounded, whatever the machine"
    assert str(raised.value).startswith(f"{path} can't be read as ") and str(raised.value).endswith("; make it again")
    assert len(str(raised.value).splitlines()) == 1


def test_names_are_text_whatever_they_look_like(tmp_path):
    (tmp_path / "file").write_text("no: 1\nmixture: {no: 0.5, 1: 0.25, null: yes}\n")
    assert read_yaml(tmp_path / "file") == {"no": 1, "mixture": {"no": 0.5, "1": 0.25, "null": True}}


def test_numbers_are_those_of_json_and_dates_are_text(tmp_path):
    (tmp_path / "file").write_text("a: [1e-4, 1E5, 2.5e+3, -.5e1, 1.5]")
    assert read_yaml(tmp_path / "file") == {"a": [1e-4, 1e5, 2.5e3, -5.0, 1.5]}
    (tmp_path / "file").write_text("a: [2026-11-25, 1e, e5, 1.2.3e4, 0x10]")
    assert read_yaml(tmp_path / "file") == {"a": ["2026-11-25", "1e", "e5", "1.2.3e4", 16]}


def test_aliases_and_merges_of_an_honest_file_are_read(tmp_path):
    text = "base: &base {lr: 1, steps: 2}\nrun:\n  <<: *base\n  steps: 3\nagain: *base\n"
    (tmp_path / "file").write_text(text)
    assert read_yaml(tmp_path / "file") == yaml.safe_load(text)


@pytest.mark.parametrize("kind", ["fifo", "device", "folder", "loop", "nothing", "large"])
def test_what_is_no_small_regular_file_is_refused_at_once(kind, tmp_path):
    path = tmp_path / "file"
    {
        "fifo": lambda: os.mkfifo(path),
        "device": lambda: path.symlink_to("/dev/zero"),
        "folder": lambda: path.mkdir(),
        "loop": lambda: path.symlink_to("file"),
        "nothing": lambda: None,
        "large": lambda: os.truncate(os.open(path, os.O_CREAT | os.O_WRONLY), 300 << 30),
    }[kind]()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for read in (read_json, read_yaml, read_text):
        with pytest.raises(UserError, match=str(path)):
            read(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2 << 20
    if kind in ("fifo", "device"):
        with pytest.raises(UserError, match="not a regular file"):
            open_regular(path)


def test_messages_have_one_line_and_nothing_that_a_terminal_obeys():
    error = UserError("bad \x1b[31mname\x1b[0m\r\n\u202egnp.exe and \udc80 é 中")
    assert str(error) == "bad \\x1b[31mname\\x1b[0m \\u202egnp.exe and \\udc80 é 中"
    assert printable("a\tb\x07", keep="\t\n") == "a\tb\\x07"
