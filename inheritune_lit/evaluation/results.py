"""Results: a folder that keeps them, checked when they are read again, and tables in the paper's shape and as CSV."""

import csv
import io
import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inheritune_lit.errors import UserError
from inheritune_lit.evaluation.cells import LEVEL, Cell, CheckpointScores, Record, average, is_percent
from inheritune_lit.evaluation.held_out import ValidationResult
from inheritune_lit.evaluation.suite import Column, Suite
from inheritune_lit.io.folders import check_vacant, own_folder, remove, replace_text
from inheritune_lit.io.manifest import MANIFEST, check_settings, read_manifest, replace_manifest, write_manifest
from inheritune_lit.io.reading import read_json
from inheritune_lit.io.records import to_record, without_nan
from inheritune_lit.io.tables import markdown_table

HELD_OUT = "held_out"  # name of the record of packed data beside those of tasks
_GROWS = ("checkpoints", "columns")
_DESCRIBES = ("task_sha256", "task_version", "num_fewshot", "split")
"""What changes with a task's description: its old score is of another task, and is replaced."""
_REMEDY = "remove it, the same command then scores it again"
_REQUESTS = ".scores"
_SUMMARIES = ("results.json", "results.csv", "results.md")
NOT_RERUN = "from the paper, not re-run"
_CSV = (
    *("model", "layers", "column", "task", "metric", "unit", "score", "stderr", "rows"),
    *("floor", "floor_kind", "random_init", "above_floor"),
    *("differs_from", "difference", "p_value", "test", "source"),
)


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
    """``out_dir/<checkpoint>/<task>.json`` beside the results; ``requests`` keeps scores of single ones until the end.

    The folder is new, or of an evaluation with the same settings and maybe less to score, else a ``UserError``.
    """

    def __init__(self, out_dir: Path, settings: Record) -> None:
        self._out_dir, self._settings = out_dir, settings
        self.requests = out_dir / _REQUESTS
        names = [self._folder(name).name for name in settings["checkpoints"]]
        if clash := [name for name in names if names.count(name) > 1 or name in (*_SUMMARIES, MANIFEST, _REQUESTS)]:
            raise UserError(f"checkpoints whose results would be called {clash[0]}; give their folders other names")
        manifest = read_manifest(out_dir, "evaluation")
        if manifest is None:
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
        """A task's finished record, None of one described otherwise; one damaged or of other settings is refused."""
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
        about, numbers = (path, "a finished result", _REMEDY, True), []
        if task == HELD_OUT:
            numbers = [to_record(record, _HeldOutRecord, *about).loss]
        else:
            read = to_record(record, _TaskRecord, *about)
            rows, lists = len(read.answers), read.documents
            fits = len(read.choices) == rows == len(lists.get("hash", [])) and read.scores.keys() <= lists.keys()
            if fits and all(len(set(map(type, values))) == 1 for values in lists.values()):
                numbers = [score.value for score in read.scores.values() if score.n > 0]
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


def _json(value: Any) -> str:
    return json.dumps(value, default=str, ensure_ascii=False, allow_nan=False)


def results_markdown(suite: Suite, models: Sequence[CheckpointScores], limit: int | None) -> str:
    """The paper's table, then all that can be said of each score; the first model is what others are compared with."""
    parts = [f"# {suite.title}\n"]
    if limit is not None:
        parts.append(f"Only the first {limit} rows of each task: not comparable with full scores.\n")
    parts.append(_wide(suite, models))
    if suite.columns:
        parts += [_legend(suite, models), _long(models)]
    return "\n".join(parts)


def _wide(suite: Suite, models: Sequence[CheckpointScores]) -> str:
    """A row per model; the floors and the paper's rows below."""
    first = [cell for cell in models[0].cells if not cell.detail]
    header = ["model", "layers", *(cell.title for cell in first)]
    header += ["average"] * suite.average + ["held-out loss"] * any(model.held_out for model in models)
    rows = []
    for model in models:
        row = [model.name, str(model.n_layer)]
        for cell in model.cells:
            if not cell.detail:
                value, _, noise = _noisy(cell.value, cell.stderr).partition(" ")
                marks = "↑" * (cell.above is True) + "≠" * bool(cell.difference and cell.difference.differs)
                row.append(" ".join(filter(None, [value, noise, marks])))
        row += [_noisy(*average(model.cells))] if suite.average else []
        row += [_noisy(model.held_out["loss"], model.held_out["stderr"], 4)] if model.held_out else []
        rows.append(row)
    if any(cell.floor for cell in first):
        floors = [_number(cell.floor.value if cell.floor else None) for cell in first]
        rows.append(["*constant class or chance*", "", *floors])
    if any(cell.random_init is not None for cell in first):
        rows.append(["*random weights*", "", *(_number(cell.random_init) for cell in first)])
    for paper in suite.paper:
        known = {cell.title: paper.scores[cell.title] for cell in first if cell.title in paper.scores}
        row = [f"{known[cell.title]:g}" if cell.title in known else "" for cell in first]
        row += [_number(math.fsum(known.values()) / len(known))] if suite.average else []
        rows.append([f"{paper.model} ({NOT_RERUN})", "", *row])
    return markdown_table(header, rows) + "\n"


def _legend(suite: Suite, models: Sequence[CheckpointScores]) -> str:
    told = ["score ± standard error; accuracies in percent", "↑ above the floors by more than its noise (5%)"]
    if len(models) > 1:
        told.append(f"≠ differs from {models[0].name} on the same rows (p < {LEVEL})")
    if suite.source:
        told.append(f'figures marked "{NOT_RERUN}": {suite.source}')
    told += [f"random weights, {c.title}: {c.random_init['source']}" for c in suite.columns if c.random_init]
    if cut := [f"{model.truncated} of {model.name}" for model in models if model.truncated]:
        told.append(f"prompts that lost their beginning because the context is too short: {', '.join(cut)}")
    return "".join(f"- {line}\n" for line in told)


def _long(models: Sequence[CheckpointScores]) -> str:
    """A row per score."""
    rows = []
    for cells in zip(*(model.cells for model in models), strict=True):
        for model, cell in zip(models, cells, strict=True):
            floor = f"{cell.floor.value:.2f} ({cell.floor.kind})" if cell.floor else ""
            if cell.random_init is not None:
                floor = f"{cell.random_init:.2f} (random weights)"
            compared = "" if model is models[0] else "not comparable"
            if found := cell.difference:
                compared = f"{_yes_no(found.differs)}: {found.value:+.2f} ({found.test}, p = {found.p_value:.3g})"
            value, above = _noisy(cell.value, cell.stderr), _yes_no(cell.above)
            rows.append([cell.title, model.name, value, str(cell.n), floor, above, compared])
    header = ["score", "model", "value", "rows", "floor", "above the floor", f"differs from {models[0].name}"]
    return markdown_table(header, rows, left=(0, 1, 5, 6)) + "\n"


def results_csv(suite: Suite, models: Sequence[CheckpointScores]) -> str:
    """A line per score, the paper's figures below."""
    lines: list[dict[str, Any]] = []
    for model in models:
        measured = {"model": model.name, "layers": model.n_layer, "source": "measured"}
        for cell in model.cells:
            line = _column(cell) | {"score": cell.value, "stderr": cell.stderr, "rows": cell.n}
            line |= {"random_init": cell.random_init, "above_floor": _yes_no(cell.above)}
            if cell.floor:
                line |= {"floor": cell.floor.value, "floor_kind": cell.floor.kind}
            if found := cell.difference:
                line |= {"difference": found.value, "p_value": found.p_value, "test": found.test}
                line["differs_from"] = models[0].name
            lines.append(measured | line)
        if model.held_out:
            figures = {"score": model.held_out["loss"], "stderr": model.held_out["stderr"]}
            lines.append(measured | {"column": "held-out loss", "unit": "nats per token", **figures})
    columns = {column.title: _column(column) for column in suite.columns}
    for row in suite.paper:
        told = {"model": row.model, "source": f"{suite.source}: {row.model}; {NOT_RERUN}"}
        lines += [told | columns[title] | {"score": figure} for title, figure in row.scores.items()]
    text = io.StringIO()
    writer = csv.DictWriter(text, _CSV, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _column(of: Cell | Column) -> dict[str, Any]:
    unit = "percent" if is_percent(of.metric) else ""
    return {"column": of.title, "task": of.task, "metric": of.metric, "unit": unit}


def _noisy(value: float, stderr: float | None, digits: int = 2) -> str:
    noise = "stderr unknown" if stderr is None or math.isnan(stderr) else f"± {stderr:.{digits}f}"
    return f"{value:.{digits}f} {noise}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _yes_no(value: bool | None) -> str:
    return "" if value is None else "yes" if value else "no"
