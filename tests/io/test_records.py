"""Results as dataclasses: what was written comes back, and damage is refused by its name."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from inheritune_lit.errors import UserError
from inheritune_lit.io.records import read_record, write_record


@dataclass(frozen=True)
class Inner:
    values: list[float]
    first: int | None = None


@dataclass(frozen=True)
class Outer:
    name: str
    kind: Literal["a", "b"]
    inner: dict[str, Inner]
    settings: dict[str, Any] = field(default_factory=dict)


RECORD = Outer("x", "a", {"one": Inner([1.0, math.inf, 2.5], 3), "two": Inner([])}, {"seed": 1, "heads": None})


def read(path: Path) -> Outer:
    return read_record(path, Outer, "a record", "write it again")


def test_what_was_written_comes_back(tmp_path):
    write_record(tmp_path / "record.json", RECORD)
    found = read(tmp_path / "record.json")
    assert math.isnan(found.inner["one"].values[1]), "JSON has no infinity"
    assert (found.name, found.inner["one"].first, found.inner["two"], found.settings) == (
        "x",
        3,
        Inner([]),
        {"seed": 1, "heads": None},
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": 5}, "isn't a record: name is int '5'; write it again"),
        ({"kind": "c"}, "kind is str 'c'"),
        ({"inner": {"one": {"values": [1, "2"]}}}, "inner.one.values is str '2'"),
        ({"inner": {"one": {"values": [1], "second": 1}}}, "inner.one.second is unknown"),
        ({"inner": {"one": {}}}, "inner.one.values is missing"),
        ({"inner": {"one": {"values": [True]}}}, "inner.one.values is bool 'True'"),
    ],
)
def test_damage_is_named(change, message, tmp_path):
    write_record(tmp_path / "record.json", RECORD)
    content = json.loads((tmp_path / "record.json").read_text()) | change
    (tmp_path / "record.json").write_text(json.dumps(content))
    with pytest.raises(UserError) as caught:
        read(tmp_path / "record.json")
    assert message in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "[]"])
def test_files_that_are_no_records(text, tmp_path):
    (tmp_path / "record.json").write_text(text)
    with pytest.raises(UserError, match="a record"):
        read(tmp_path / "record.json")
