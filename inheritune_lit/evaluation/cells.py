"""Records of tasks into cells of the table: score, noise, floor, and the difference to the first model."""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from inheritune_lit.evaluation import paper_tasks as mmlu
from inheritune_lit.evaluation.significance import Difference, Floor, compare, floor_of, is_above, word_perplexity
from inheritune_lit.evaluation.suite import Column, PaperRow, Suite

Record = dict[str, Any]
PERCENT = ("acc", "acc_norm", "exact_match", "f1")
"""Metrics that are shares of 1 and shown in percent."""
_AGGREGATES = {"word_perplexity": word_perplexity}
# Their rows can be compared by the mean of what each contributes.
_MEANS = ("acc", "acc_norm", "exact_match")
_NEAR_REFERENCE, _BASELINES_BEATEN = 0.9, 2


@dataclass(frozen=True)
class Cell:
    """One model's score in one column, in the table's unit: percent for accuracies, else as it is.

    Attributes:
        title: the column's.
        n: rows.
        floor: see ``floors``; ``random_init`` what random weights score, where a suite says so.
        above: whether the score stands above both floors by more than its noise; None where there is no floor or the
            noise is unknown.
        difference: to the first model, on the same rows; ``value`` in the table's unit.
        bold: whether the paper's rule would print it bold.
        detail: part of another column, such as a group of MMLU: not in the table of the paper's shape.
    """

    title: str
    task: str
    metric: str
    value: float
    stderr: float | None
    n: int
    higher_is_better: bool = True
    floor: Floor | None = None
    random_init: float | None = None
    above: bool | None = None
    difference: Difference | None = None
    bold: bool = False
    detail: bool = False


def cells_of(
    suite: Suite, records: dict[str, list[Record]], first: dict[str, list[Record]] | None = None
) -> list[Cell]:
    """A model's cells.

    Args:
        suite: columns; one without a metric becomes a cell for each that its task has.
        records: of the column's task, or of MMLU's subjects, by the column's ``task``.
        first: those of the model to compare with; None for that model itself.
    """
    cells = []
    for column in suite.columns:
        theirs = first[column.task] if first is not None else None
        cells += _column(column, records[column.task], theirs)
    return [_judged(suite, cell) for cell in cells]


def _column(column: Column, records: list[Record], first: list[Record] | None) -> list[Cell]:
    if column.task == mmlu.MMLU:
        column = replace(column, metric=column.metric or "acc")
        micro = [float(record["scores"][column.metric]["n"]) for record in records]
        cells = [_mean(column, column.title, records, first, [1.0] * len(records), False)]
        cells.append(_mean(column, f"{column.title}, micro", records, first, micro, True))
        for tag, name in mmlu.GROUPS.items():
            chosen = [number for number, record in enumerate(records) if tag in (record["tag"] or [])]
            if chosen:
                theirs = [first[number] for number in chosen] if first else None
                ours = [records[number] for number in chosen]
                cells.append(_mean(column, f"{column.title}, {name}", ours, theirs, [1.0] * len(chosen), True))
        return cells
    (record,) = records
    metrics = [column.metric] if column.metric else list(record["scores"])
    titles = [column.title if column.metric else f"{column.title} {metric}" for metric in metrics]
    return [
        _mean(replace(column, metric=metric), title, records, first, [1.0], False)
        for metric, title in zip(metrics, titles, strict=True)
    ]


def _mean(
    column: Column,
    title: str,
    records: list[Record],
    first: list[Record] | None,
    weights: list[float],
    detail: bool,
) -> Cell:
    metric = column.metric
    unit = 100.0 if metric in PERCENT else 1.0
    scores = [record["scores"][metric] for record in records]
    mean = mmlu.weighted(scores, weights)
    floor = floor_of(records, metric, column.floor, weights)
    difference = _difference(records, first, metric)
    random_init = column.random_init["value"] if column.random_init else None
    stderr = None if mean.stderr is None else unit * mean.stderr
    floors = [unit * floor.value] if floor else []
    floors += [random_init] if random_init is not None else []
    higher = scores[0]["higher_is_better"]
    return Cell(
        title=title,
        task=column.task,
        metric=metric,
        value=unit * mean.value,
        stderr=stderr,
        n=mean.n,
        higher_is_better=higher,
        floor=replace(floor, value=unit * floor.value) if floor else None,
        random_init=random_init,
        above=is_above(unit * mean.value, stderr, max(floors)) if floors and higher else None,
        difference=replace(difference, value=unit * difference.value) if difference else None,
        detail=detail,
    )


def _difference(records: list[Record], first: list[Record] | None, metric: str) -> Difference | None:
    """Compare on the same rows, all subjects' together; None where a metric is not a mean of its rows."""
    if first is None or (metric not in _AGGREGATES and metric not in _MEANS):
        return None
    if any(a["documents"]["hash"] != b["documents"]["hash"] for a, b in zip(records, first, strict=True)):
        return None
    ours, theirs = (
        np.array([value for record in side for value in record["documents"][metric]]) for side in (records, first)
    )
    return compare(theirs, ours, _AGGREGATES.get(metric))


def _judged(suite: Suite, cell: Cell) -> Cell:
    if not suite.bold_rule or cell.detail:
        return cell
    return replace(cell, bold=is_bold(cell.value, cell.title, suite.paper))


def is_bold(value: float, title: str, paper: list[PaperRow]) -> bool:
    """The paper's rule (Table 5): at least 90% of the reference, or above at least two baselines.

    Args:
        value: the score, in the paper's unit; higher is better.
        title: the column.
        paper: the paper's rows.
    """
    references = [row.scores[title] for row in paper if row.role == "reference" and title in row.scores]
    baselines = [row.scores[title] for row in paper if row.role == "baseline" and title in row.scores]
    if any(value >= _NEAR_REFERENCE * reference for reference in references):
        return True
    return sum(value > baseline for baseline in baselines) >= _BASELINES_BEATEN


def average(cells: list[Cell]) -> tuple[float, float | None]:
    """Mean of the columns and its standard error, tasks taken as independent."""
    shown = [cell for cell in cells if not cell.detail]
    stderrs = [cell.stderr for cell in shown if cell.stderr is not None]
    mean = math.fsum(cell.value for cell in shown) / len(shown)
    return mean, math.hypot(*stderrs) / len(shown) if len(stderrs) == len(shown) else None
