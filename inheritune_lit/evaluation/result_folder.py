"""The folder that results are kept in: checked when they are read again, and written by one process at a time."""

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inheritune_lit.errors import UserError
from inheritune_lit.evaluation.held_out import ValidationResult
from inheritune_lit.io.folders import check_vacant, own_folder, remove, replace_text
from inheritune_lit.io.manifest import MANIFEST, check_settings, read_manifest, replace_manifest, write_manifest
from inheritune_lit.io.reading import read_json
from inheritune_lit.io.records import to_record, without_nan

HELD_OUT = "held_out"
"""Name of the record of packed data beside those of tasks."""
_GROWS = ("checkpoints", "columns")
_DESCRIBES = ("task_sha256", "task_version", "num_fewshot", "split")
"""What changes with a task's description: its old score is of another task, and is replaced."""
_REMEDY = "remove it, the same command then scores it again"
_REQUESTS = ".scores"
_SUMMARIES = ("results.json", "results.csv", "results.md")

Record = dict[str, Any]
"""What was found and what it is of, ready for JSON."""


@dataclass(frozen=True)
class _Score:
    value: float
    stderr: float | None
    n: int
    higher_is_better: bool


@dataclass(frozen=True)
class _TaskRecord:
    """What is read of a finished task; see ``score_task``."""

    identity: Record
    scores: dict[str, _Score]
    truncated: int
    seconds: float
    tag: str | list[str] | None
    answers: list[int | list[int] | None]
    choices: list[int | None]
    documents: dict[str, list[float | str | list[float | str]]]


@dataclass(frozen=True)
class _HeldOutRecord(ValidationResult):
    identity: Record


class ResultFolder:
    """``out_dir/<checkpoint>/<task>.json`` beside ``results.json``, ``results.md`` and ``results.csv``.

    The folder is a new one, or of an evaluation with the same settings; checkpoints and columns may be more. One that
    holds something else is a ``UserError``.

    Attributes:
        requests: where scores of single requests are kept until all is finished.
    """

    def __init__(self, out_dir: Path, settings: Record) -> None:
        self._out_dir, self._settings = out_dir, settings
        self.requests = out_dir / _REQUESTS
        names = [self._folder(name).name for name in settings["checkpoints"]]
        if clash := [name for name in names if names.count(name) > 1 or name in (*_SUMMARIES, MANIFEST, _REQUESTS)]:
            raise UserError(f"checkpoints whose results would be called {clash[0]}; give their folders other names")
        manifest = read_manifest(out_dir) if out_dir.is_dir() else None
        if manifest is None or manifest.get("kind") != "evaluation":
            check_vacant(out_dir)
            return
        recorded = manifest.get("settings")
        if not isinstance(recorded, dict) or not all(isinstance(recorded.get(key), list) for key in _GROWS):
            raise UserError(f"{out_dir / MANIFEST} is damaged, it has no settings; give another --out_dir")
        check_settings(f"{out_dir} was made", {key: recorded.get(key) for key in settings}, settings, free=_GROWS)
        for key in _GROWS:
            if lost := [entry for entry in recorded[key] if entry not in settings[key]]:
                raise UserError(f"{out_dir} has results of {key} {lost[0]!r} too; name it, or give another --out_dir")

    @contextmanager
    def own(self) -> Iterator[None]:
        """Keep other processes out; where nothing was scored, nothing is left."""
        with own_folder(self._out_dir):
            try:
                yield
            finally:
                kept = [path for path in self._out_dir.rglob("*") if path.is_file() and path.stat().st_size]
                if {path.name for path in kept} <= {MANIFEST, ".lock"}:
                    remove(self.requests)
                    (self._out_dir / MANIFEST).unlink(missing_ok=True)

    def open(self) -> None:
        """Begin the folder, or note what has been added."""
        manifest = read_manifest(self._out_dir)
        if manifest is None:
            write_manifest(self._out_dir, "evaluation", {"settings": self._settings})
        elif manifest["settings"] != self._settings:
            replace_manifest(self._out_dir, {**manifest, "settings": self._settings})

    def has_results(self, checkpoint: str) -> bool:
        """Whether a task is finished."""
        return any(self._folder(checkpoint).glob("*.json"))

    def read(self, checkpoint: str, task: str, identity: Record) -> Record | None:
        """The finished record of a task, None where there is none or its description has changed since.

        Raises:
            UserError: it is damaged, or another model, settings or rows made it.
        """
        path = self._folder(checkpoint) / f"{task}.json"
        if not path.is_file():
            return None
        record = read_json(path, "a finished result", _REMEDY)
        before = record.get("identity")
        if not isinstance(before, dict):
            raise UserError(f"{path} is damaged, it has no identity; {_REMEDY}")
        check_settings(f"{path} was made", {key: before.get(key) for key in identity}, identity, free=_DESCRIBES)
        if any(before.get(key) != identity.get(key) for key in _DESCRIBES):
            return None
        about = (path, "a finished result", _REMEDY, True)
        if task == HELD_OUT:
            numbers = [to_record(record, _HeldOutRecord, *about).loss]
        else:
            numbers = _numbers(to_record(record, _TaskRecord, *about))
        if not numbers or not all(map(math.isfinite, numbers)):
            raise UserError(f"{path} is damaged, it has no scores of all its rows; {_REMEDY}")
        return record

    def write(self, checkpoint: str, task: str, record: Record, samples: list[Record]) -> None:
        """Keep a finished record; the samples are there before it."""
        self.open()
        folder = self._folder(checkpoint)
        folder.mkdir(exist_ok=True)
        if samples:
            replace_text(folder / f"{task}.samples.jsonl", "".join(_json(without_nan(each)) + "\n" for each in samples))
        # A line per field: the lists of rows would otherwise take a line per entry.
        lines = [f"  {_json(key)}: {_json(value)}" for key, value in record.items()]
        replace_text(folder / f"{task}.json", "{\n" + ",\n".join(lines) + "\n}\n")

    def write_summary(self, results: Record, markdown: str, table: str) -> None:
        """Write the three files that sum up; the scores of single requests have served their purpose."""
        self.open()
        text = json.dumps(without_nan(results), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        for name, content in zip(_SUMMARIES, (text, table, markdown), strict=True):
            replace_text(self._out_dir / name, content)
        remove(self.requests)

    def _folder(self, checkpoint: str) -> Path:
        return self._out_dir / checkpoint.replace(os.sep, "_")


def _numbers(record: _TaskRecord) -> list[float]:
    """The scores of a task, none where a list has not an entry per row."""
    rows, lists = len(record.answers), record.documents
    fits = len(record.choices) == rows == len(lists.get("hash", [])) and record.scores.keys() <= lists.keys()
    alike = all(len({type(each) for each in values}) == 1 for values in lists.values())
    return [score.value for score in record.scores.values() if score.n > 0] if fits and alike else []


def _json(value: Any) -> str:
    return json.dumps(value, default=str, ensure_ascii=False, allow_nan=False)
