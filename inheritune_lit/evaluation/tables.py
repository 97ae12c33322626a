"""Results as Markdown in the paper's shape, and as CSV."""

import csv
import io
import math
from collections.abc import Sequence
from typing import Any

from inheritune_lit.evaluation.cells import LEVEL, Cell, CheckpointScores, average, is_percent
from inheritune_lit.evaluation.suite import Column, Suite
from inheritune_lit.io.tables import markdown_table

NOT_RERUN = "from the paper, not re-run"
_CSV = (
    *("model", "layers", "column", "task", "metric", "unit", "score", "stderr", "rows"),
    *("floor", "floor_kind", "random_init", "above_floor", "bold"),
    *("differs_from", "difference", "p_value", "test", "source"),
)


def results_markdown(suite: Suite, models: Sequence[CheckpointScores], limit: int | None) -> str:
    """The table in the paper's shape, then every score with what can be said of it.

    The first model is the one that the others are compared with; ``limit`` is that of rows per task.
    """
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
        row = [model.name, str(model.n_layer), *(_marked(cell) for cell in model.cells if not cell.detail)]
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
    return _table(header, rows)


def _legend(suite: Suite, models: Sequence[CheckpointScores]) -> str:
    told = ["score ± standard error; accuracies in percent", "↑ above the floors by more than its noise (5%)"]
    if len(models) > 1:
        told.append(f"≠ differs from {models[0].name} on the same rows (p < {LEVEL})")
    if suite.bold_rule:
        told.append(
            "bold by the paper's rule: at least 90% of its reference's figure or above at least two of its baselines', "
            "whatever the noise and the floor"
        )
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
    return _table(header, rows, left=(0, 1, 5, 6))


def results_csv(suite: Suite, models: Sequence[CheckpointScores]) -> str:
    """A line per score, the paper's figures below."""
    lines: list[dict[str, Any]] = []
    for model in models:
        measured = {"model": model.name, "layers": model.n_layer, "source": "measured"}
        for cell in model.cells:
            line = _column(cell) | {"score": cell.value, "stderr": cell.stderr, "rows": cell.n}
            line |= {"random_init": cell.random_init, "above_floor": _yes_no(cell.above)}
            line["bold"] = _yes_no(cell.bold) if suite.bold_rule else ""
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


def _marked(cell: Cell) -> str:
    value, _, noise = _noisy(cell.value, cell.stderr).partition(" ")
    marks = "↑" * (cell.above is True) + "≠" * bool(cell.difference and cell.difference.differs)
    return " ".join(filter(None, [f"**{value}**" if cell.bold else value, noise, marks]))


def _noisy(value: float, stderr: float | None, digits: int = 2) -> str:
    noise = "stderr unknown" if stderr is None or math.isnan(stderr) else f"± {stderr:.{digits}f}"
    return f"{value:.{digits}f} {noise}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _yes_no(value: bool | None) -> str:
    return "" if value is None else "yes" if value else "no"


def _table(header: list[str], rows: list[list[str]], left: tuple[int, ...] = (0,)) -> str:
    """A table; rows that end early have empty cells there."""
    padded = [[*row, *[""] * (len(header) - len(row))] for row in rows]
    return markdown_table(header, padded, left) + "\n"
