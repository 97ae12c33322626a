"""Noise of scores: standard errors, what a model that has learnt nothing scores, and whether two models differ."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import binomtest

from inheritune_lit.evaluation.suite import FloorKind

_METRICS = ("acc", "acc_norm")


@dataclass(frozen=True)
class Floor:
    """A floor as a share of 1, and which: "constant class" or "chance"."""

    value: float
    kind: str


def floor_of(records: list[dict[str, Any]], metric: str, kind: FloorKind, weights: list[float]) -> Floor | None:
    """The floor of a mean over tasks, computed from the very rows that were scored; None where there is none.

    Args:
        records: of one task, or of MMLU's subjects.
        metric: floors are those of accuracies.
        kind: see ``Column.floor``.
        weights: of the records in the mean.
    """
    if kind == "none" or metric not in _METRICS:
        return None
    if any(answer is None for record in records for answer in record["answers"]):
        return None
    varied = len({answer for record in records for answer in record["answers"]}) > 1
    if kind == "auto":
        kind = "constant" if varied else "chance"
    total = math.fsum(weights)
    if kind == "chance":
        shares = [math.fsum(1 / n for n in record["choices"]) / len(record["choices"]) for record in records]
        return Floor(_mean(shares, weights, total), "chance")
    counts = [Counter(record["answers"]) for record in records]
    by_answer = [
        _mean([count[answer] / count.total() for count in counts], weights, total) for answer in set().union(*counts)
    ]
    return Floor(max(by_answer), "constant class")


def _mean(values: list[float], weights: list[float], total: float) -> float:
    return math.fsum(value * weight for value, weight in zip(values, weights, strict=True)) / total


LEVEL = 0.05
"""Differences with a smaller p-value are called differences."""
Z = 1.959964
"""Standard errors that a score must stand above a floor: two-sided 5%."""
_RESAMPLES = 2000
_SEED = 1337


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
    """Two-sided p-value of McNemar's exact test: rows that only one model gets right are a fair coin's tosses.

    Args:
        first, second: 1 for right and 0 for wrong, in the order of the rows.
    """
    only_first = sum(a > b for a, b in zip(first, second, strict=True))
    only_second = sum(a < b for a, b in zip(first, second, strict=True))
    tosses = only_first + only_second
    return float(binomtest(only_first, tosses).pvalue) if tosses else 1.0


def compare(
    first: np.ndarray, second: np.ndarray, score: Callable[[np.ndarray], float] | None = None
) -> Difference | None:
    """Compare two models on the same rows; None for a single row, which says nothing of the noise.

    Rights and wrongs go through McNemar's exact test, everything else through a paired bootstrap.

    Args:
        first, second: one value a row (N,), or several (N, K).
        score: the score of some rows' values; their mean when None.
    """
    if len(first) < 2:
        return None
    if score is None and set(np.unique(np.concatenate([first, second]))) <= {0.0, 1.0}:
        p_value = mcnemar_exact(first.tolist(), second.tolist())
        return Difference(float(second.mean() - first.mean()), "McNemar exact", p_value)
    score = score or (lambda rows: float(rows.mean()))
    value = score(second) - score(first)
    differences = np.array([score(second[rows]) - score(first[rows]) for rows in _resamples(len(first))])
    beyond = min((differences <= 0).sum(), (differences >= 0).sum())
    # One is added to both: a bootstrap never shows a probability of 0.
    return Difference(value, "paired bootstrap", min(1.0, 2 * (beyond + 1) / (_RESAMPLES + 1)))


def word_perplexity(rows_N2: np.ndarray) -> float:
    """exp of minus the log-likelihood a word, of rows (log-likelihood in nats, words)."""
    total, words = rows_N2.sum(axis=0)
    return math.exp(-total / words)


def bootstrap_stderr(rows: np.ndarray, score: Callable[[np.ndarray], float]) -> float | None:
    """Standard error of a score over independent rows; None for a single row."""
    if len(rows) < 2:
        return None
    return float(np.std([score(rows[chosen]) for chosen in _resamples(len(rows))], ddof=1))


def _resamples(count: int) -> Iterator[np.ndarray]:
    draw = np.random.default_rng(_SEED)
    for _ in range(_RESAMPLES):
        yield draw.integers(0, count, count)


def is_above(score: float, stderr: float | None, floor: float) -> bool | None:
    """Whether a score stands above a floor by more than its noise; None where the noise is unknown."""
    return None if stderr is None else score > floor + Z * stderr
