"""Records of tasks into cells of the table: score, noise, what nothing learnt scores, and whether two models differ."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.stats import binomtest

from inheritune_lit.evaluation.suite import GROUPS, MMLU, Column, FloorKind, Suite

LEVEL = 0.05  # differences with a smaller p-value are called differences
Z = 1.959964  # standard errors that a score must stand above a floor: two-sided 5%
_RESAMPLES, _SEED = 2000, 1337
Score = Callable[[np.ndarray], float]  # of rows
Record = dict[str, Any]  # what was found and what it is of, ready for JSON


@dataclass(frozen=True)
class Floor:
    """A floor as a share of 1, and which: "constant class" or "chance"."""

    value: float
    kind: str


def floor_of(records: list[Record], metric: str, kind: FloorKind, weights: list[float]) -> Floor | None:
    """The floor of an accuracy on the rows that were scored, MMLU's subjects by ``weights``; None where none is."""
    # The right choices of each row of each record: there may be several.
    right = [[set(a if isinstance(a, list) else [a]) for a in record["answers"]] for record in records]
    sets = {frozenset(row) for rows in right for row in rows}
    if kind == "none" or metric not in ("acc", "acc_norm") or frozenset([None]) in sets:
        return None
    if kind == "chance" or (kind == "auto" and len(sets) <= 1):
        pairs = [list(zip(rows, record["choices"], strict=True)) for rows, record in zip(right, records, strict=True)]
        shares = [np.mean([len(row) / choices for row, choices in each]) for each in pairs]
        return Floor(float(np.average(shares, weights=weights)), "chance")
    constant = [[np.mean([answer in row for row in rows]) for rows in right] for answer in frozenset().union(*sets)]
    return Floor(max(float(np.average(shares, weights=weights)) for shares in constant), "constant class")


def is_above(score: float, stderr: float | None, floor: float) -> bool | None:
    """Whether a score stands above a floor by more than its noise; None where the noise is unknown."""
    return None if stderr is None else score > floor + Z * stderr


@dataclass(frozen=True)
class Difference:
    """Two models on the same rows: second minus first, the test's name and its two-sided p-value."""

    value: float
    test: str
    p_value: float

    @property
    def differs(self) -> bool:
        return self.p_value < LEVEL


def mcnemar_exact(first: Sequence[float], second: Sequence[float]) -> float:
    """Two-sided p-value of McNemar's exact test: of rights (1) and wrongs (0), only one model's are a coin's tosses."""
    only_first = sum(a > b for a, b in zip(first, second, strict=True))
    tosses = only_first + sum(a < b for a, b in zip(first, second, strict=True))
    return float(binomtest(only_first, tosses).pvalue) if tosses else 1.0


def compare(first: np.ndarray, second: np.ndarray, score: Score | None = None) -> Difference | None:
    """Compare two models on the same rows, with one value per row (N,) or several (N, K); None for a single row.

    Rights and wrongs take McNemar's exact test, others a paired bootstrap of ``score``, which is the mean when None.
    """
    if len(first) < 2:
        return None
    if score is None and set(np.unique(np.concatenate([first, second]))) <= {0.0, 1.0}:
        p_value = mcnemar_exact(first.tolist(), second.tolist())
        return Difference(float(second.mean() - first.mean()), "McNemar exact", p_value)
    score = score or (lambda rows: float(rows.mean()))
    differences = np.array([score(second[rows]) - score(first[rows]) for rows in _resamples(len(first))])
    beyond = min((differences <= 0).sum(), (differences >= 0).sum())
    # One is added to both: a bootstrap never shows a probability of 0.
    p_value = min(1.0, 2 * (beyond + 1) / (_RESAMPLES + 1))
    return Difference(score(second) - score(first), "paired bootstrap", p_value)


def word_perplexity(rows_N2: np.ndarray) -> float:
    """exp of minus the log-likelihood per word, of rows (log-likelihood in nats, words)."""
    total, words = rows_N2.sum(axis=0)
    return math.exp(-total / words)


def bootstrap_stderr(rows: np.ndarray, score: Score) -> float | None:
    """Standard error of a score over independent rows; None for a single row."""
    if len(rows) < 2:
        return None
    return float(np.std([score(rows[chosen]) for chosen in _resamples(len(rows))], ddof=1))


def _resamples(count: int) -> Iterator[np.ndarray]:
    draw = np.random.default_rng(_SEED)
    return (draw.integers(0, count, count) for _ in range(_RESAMPLES))


def is_percent(metric: str) -> bool:
    """Whether a metric, which may name a filter too as "exact_match,strict", is shown in percent."""
    return metric.partition(",")[0] in ("acc", "acc_norm", "exact_match", "f1")  # which are shares of 1


# How rows make up a score that can be compared; None is the mean of what each contributes.
_AGGREGATES = {"word_perplexity": word_perplexity, "acc": None, "acc_norm": None, "exact_match": None}


@dataclass(frozen=True)
class Cell:
    """One model's score in one column, in the table's unit: percent for accuracies, else as it is."""

    title: str
    task: str
    metric: str
    value: float
    stderr: float | None
    n: int  # rows
    higher_is_better: bool = True
    floor: Floor | None = None  # what a model that has learnt nothing scores
    random_init: float | None = None  # what random weights score, where a suite says
    above: bool | None = None  # both floors, by more than its noise; None without floor, or where the noise is unknown
    difference: Difference | None = None  # to the first model, on the same rows
    detail: bool = False  # part of another column, such as a group of MMLU: not in the table of the paper's shape


@dataclass(frozen=True)
class CheckpointScores:
    """What a checkpoint scored."""

    name: str  # short, as tables have it
    path: str
    weights_sha256: str
    tokenizer_sha256: str
    n_layer: int
    parameters: int
    manifest: dict[str, Any] | None
    held_out: dict[str, Any] | None  # loss on packed data in nats per token; None where none was asked for
    tasks: dict[str, dict[str, Any]]  # {task: {metric: {"value", "stderr", "n", ...}}}
    truncated: int  # prompts that lost their beginning
    seconds: float  # over all attempts
    cells: list[Cell]


def cells_of(suite: Suite, records: dict[str, list[Record]], first: dict[str, list[Record]] | None) -> list[Cell]:
    """A model's cells; a column without a metric becomes one for each metric that its task has.

    ``records`` are those of a column's task (MMLU: of its subjects), ``first`` the compared model's, None for itself.
    """
    cells = []
    for column in suite.columns:
        ours, theirs = records[column.task], first[column.task] if first else None
        if column.task != MMLU:
            scores, asked = ours[0]["scores"], column.metric
            # Of a task with several filters, the first one's where none is named.
            named = next((each for each in scores if asked in (each, each.partition(",")[0])), asked)
            for metric in [named] if asked else scores:
                title = column.title if column.metric else f"{column.title} {metric}"
                cells.append(_cell(replace(column, title=title, metric=metric), ours, theirs))
            continue
        column = replace(column, metric=column.metric or "acc")
        questions = [float(record["scores"][column.metric]["n"]) for record in ours]
        cells.append(_cell(column, ours, theirs))
        cells.append(_cell(replace(column, title=f"{column.title}, micro"), ours, theirs, questions, True))
        for tag, name in GROUPS.items():
            chosen = [number for number, record in enumerate(ours) if tag in (record["tag"] or [])]
            if chosen:
                group = replace(column, title=f"{column.title}, {name}")
                own, other = [ours[number] for number in chosen], theirs and [theirs[number] for number in chosen]
                cells.append(_cell(group, own, other, detail=True))
    return cells


def _cell(
    column: Column,
    records: list[Record],
    first: list[Record] | None,
    weights: list[float] | None = None,
    detail: bool = False,
) -> Cell:
    """The mean of the records, which all weigh the same unless ``weights`` says otherwise."""
    metric, weights = column.metric, weights or [1.0] * len(records)
    unit = 100.0 if is_percent(metric) else 1.0
    scores = [record["scores"][metric] for record in records]
    # Equal weights give MMLU as the paper has it (macro), numbers of questions lm-eval's (micro).
    value = unit * float(np.average([score["value"] for score in scores], weights=weights))
    stderr, noises = None, [score["stderr"] for score in scores]
    if None not in noises:
        stderr = unit * math.hypot(*(w * noise for w, noise in zip(weights, noises, strict=True))) / math.fsum(weights)
    if floor := floor_of(records, metric, column.floor, weights):
        floor = replace(floor, value=unit * floor.value)
    if difference := _difference(records, first, metric):
        difference = replace(difference, value=unit * difference.value)
    random_init = column.random_init["value"] if column.random_init else None
    floors = [low for low in (floor.value if floor else None, random_init) if low is not None]
    n, higher_is_better = sum(score["n"] for score in scores), scores[0]["higher_is_better"]
    above = is_above(value, stderr, max(floors)) if floors and higher_is_better else None
    of = (column.title, column.task, metric, value, stderr, n, higher_is_better)
    return Cell(*of, floor, random_init, above, difference, detail)


def _difference(records: list[Record], first: list[Record] | None, metric: str) -> Difference | None:
    """Compare on the same rows, all subjects' together; None where a score does not follow from its rows."""
    kind = metric.partition(",")[0]
    if first is None or kind not in _AGGREGATES:
        return None
    for ours, theirs in zip(records, first, strict=True):
        rows = [len(side["documents"].get(metric, ())) for side in (ours, theirs)]
        if ours["documents"]["hash"] != theirs["documents"]["hash"] or rows[0] != rows[1]:
            return None
    before, after = (np.concatenate([record["documents"][metric] for record in side]) for side in (first, records))
    return compare(before, after, _AGGREGATES[kind])


def average(cells: list[Cell]) -> tuple[float, float | None]:
    """Mean of the columns and its standard error, tasks taken as independent."""
    shown = [cell for cell in cells if not cell.detail]
    stderrs = [cell.stderr for cell in shown if cell.stderr is not None]
    mean = math.fsum(cell.value for cell in shown) / len(shown)
    return mean, math.hypot(*stderrs) / len(shown) if len(stderrs) == len(shown) else None
