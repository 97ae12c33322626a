"""Results as Markdown in the paper's shape, and as CSV."""

import csv
import io
import math
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from inheritune_lit.evaluation.cells import PERCENT, Cell, average
from inheritune_lit.evaluation.significance import LEVEL
from inheritune_lit.evaluation.suite import Suite

NOT_RERUN = "from the paper, not re-run"
_CSV = (
    *("model", "layers", "column", "task", "metric", "unit", "score", "stderr", "rows"),
    *("floor", "floor_kind", "random_init", "above_floor", "bold"),
    *("differs_from", "difference", "p_value", "test", "source"),
)


class ScoredModel(Protocol):
    """What the tables need to know of a checkpoint: its name, depth, cells, and held-out loss."""

    @property
    def name(self) -> str: ...
    @property
    def n_layer(self) -> int: ...
    @property
    def cells(self) -> list[Cell]: ...
    @property
    def held_out(self) -> dict[str, Any] | None: ...
    @property
    def truncated(self) -> int: ...


def results_markdown(suite: Suite | None, models: Sequence[ScoredModel], limit: int | None) -> str:
    """The table in the paper's shape, then every score with what can be said of it.

    Args:
        suite: None where only held-out text was scored.
        models: the first is the one that the others are compared with.
        limit: rows per task, where not all were scored.
    """
    parts = [f"# {suite.title if suite else 'Held-out text'}\n"]
    if limit is not None:
        parts.append(f"Only the first {limit} rows of each task: not comparable with full scores.\n")
    parts.append(_wide(suite, models))
    if suite:
        parts.append(_legend(suite, models))
        parts.append(_long(models))
    return "\n".join(parts)


def _wide(suite: Suite | None, models: Sequence[ScoredModel]) -> str:
    """A row a model; the floors and the paper's rows below."""
    titles = [cell.title for cell in models[0].cells if not cell.detail]
    has_loss = any(model.held_out for model in models)
    has_average = bool(suite and suite.average)
    columns = ["model", "layers", *titles, *["average"] * has_average, *["held-out loss"] * has_loss]
    lines = [_line(columns), "|---|" + "--:|" * (len(columns) - 1)]
    for model in models:
        shown = [_marked(cell) for cell in model.cells if not cell.detail]
        shown += [_noisy(*average(model.cells))] if has_average else []
        shown += [_noisy(model.held_out["loss"], model.held_out["stderr"], 4) if model.held_out else ""] * has_loss
        lines.append(_line([model.name, str(model.n_layer), *shown]))
    first = [cell for cell in models[0].cells if not cell.detail]
    blank = [""] * (has_average + has_loss)
    if any(cell.floor for cell in first):
        floors = [f"{cell.floor.value:.2f}" if cell.floor else "" for cell in first]
        lines.append(_line(["*constant class or chance*", "", *floors, *blank]))
    if any(cell.random_init is not None for cell in first):
        floors = [f"{cell.random_init:.2f}" if cell.random_init is not None else "" for cell in first]
        lines.append(_line(["*random weights*", "", *floors, *blank]))
    for row in suite.paper if suite else []:
        figures = [row.scores.get(title) for title in titles]
        shown = ["" if figure is None else f"{figure:g}" for figure in figures]
        if has_average:
            known = [figure for figure in figures if figure is not None]
            shown.append(f"{math.fsum(known) / len(known):.2f}")
        lines.append(_line([f"{row.model} ({NOT_RERUN})", "", *shown, *[""] * has_loss]))
    return "\n".join(lines) + "\n"


def _legend(suite: Suite, models: Sequence[ScoredModel]) -> str:
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
    if cut := {model.name: model.truncated for model in models if model.truncated}:
        counts = ", ".join(f"{count} of {name}" for name, count in cut.items())
        told.append(f"prompts that lost their beginning because the context is too short: {counts}")
    return "".join(f"- {line}\n" for line in told)


def _long(models: Sequence[ScoredModel]) -> str:
    """A row a score."""
    lines = [
        _line(["score", "model", "value", "rows", "floor", "above the floor", f"differs from {models[0].name}"]),
        "|---|---|--:|--:|--:|---|---|",
    ]
    for number, cell in enumerate(models[0].cells):
        for model in models:
            cell = model.cells[number]
            floor = f"{cell.floor.value:.2f} ({cell.floor.kind})" if cell.floor else ""
            if cell.random_init is not None:
                floor = f"{cell.random_init:.2f} (random weights)"
            lines.append(
                _line(
                    [
                        cell.title,
                        model.name,
                        _noisy(cell.value, cell.stderr),
                        str(cell.n),
                        floor,
                        _yes_no(cell.above),
                        _difference(cell, model is models[0]),
                    ]
                )
            )
    return "\n".join(lines) + "\n"


def results_csv(suite: Suite | None, models: Sequence[ScoredModel]) -> str:
    """A line a score, the paper's figures below."""
    text = io.StringIO()
    writer = csv.DictWriter(text, _CSV, lineterminator="\n")
    writer.writeheader()
    for model in models:
        for cell in model.cells:
            line = {
                "model": model.name,
                "layers": model.n_layer,
                "column": cell.title,
                "task": cell.task,
                "metric": cell.metric,
                "unit": "percent" if cell.metric in PERCENT else "",
                "score": cell.value,
                "stderr": cell.stderr,
                "rows": cell.n,
                "random_init": cell.random_init,
                "above_floor": _yes_no(cell.above),
                "bold": _yes_no(cell.bold) if suite and suite.bold_rule else "",
                "source": "measured",
            }
            if cell.floor:
                line |= {"floor": cell.floor.value, "floor_kind": cell.floor.kind}
            if cell.difference:
                line |= {
                    "differs_from": models[0].name,
                    "difference": cell.difference.value,
                    "p_value": cell.difference.p_value,
                    "test": cell.difference.test,
                }
            writer.writerow(line)
        if model.held_out:
            loss, stderr = model.held_out["loss"], model.held_out["stderr"]
            line = {"column": "held-out loss", "unit": "nats per token", "score": loss, "stderr": stderr}
            writer.writerow({"model": model.name, "layers": model.n_layer, **line, "source": "measured"})
    for line in _paper_lines(suite) if suite else []:
        writer.writerow(line)
    return text.getvalue()


def _paper_lines(suite: Suite) -> Iterator[dict[str, Any]]:
    by_title = {column.title: column for column in suite.columns}
    for row in suite.paper:
        for title, figure in row.scores.items():
            column = by_title[title]
            yield {
                "model": row.model,
                "column": title,
                "task": column.task,
                "metric": column.metric,
                "unit": "percent" if column.metric in PERCENT else "",
                "score": figure,
                "source": f"{suite.source}: {row.model}; {NOT_RERUN}",
            }


def _marked(cell: Cell) -> str:
    value = f"{cell.value:.2f}"
    noise = "stderr unknown" if cell.stderr is None else f"± {cell.stderr:.2f}"
    marks = "↑" * (cell.above is True) + "≠" * bool(cell.difference and cell.difference.differs)
    return " ".join(filter(None, [f"**{value}**" if cell.bold else value, noise, marks]))


def _noisy(value: float, stderr: float | None, digits: int = 2) -> str:
    noise = "stderr unknown" if stderr is None or math.isnan(stderr) else f"± {stderr:.{digits}f}"
    return f"{value:.{digits}f} {noise}"


def _difference(cell: Cell, is_first: bool) -> str:
    if is_first or cell.difference is None:
        return "" if is_first else "not comparable"
    verdict = "yes" if cell.difference.differs else "no"
    p_value = f"p = {cell.difference.p_value:.3g}"
    return f"{verdict}: {cell.difference.value:+.2f} ({cell.difference.test}, {p_value})"


def _yes_no(value: bool | None) -> str:
    return "" if value is None else "yes" if value else "no"


def _line(entries: list[str]) -> str:
    return "| " + " | ".join(entry.replace("|", "\\|") for entry in entries) + " |"
