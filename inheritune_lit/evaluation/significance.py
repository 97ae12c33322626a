"""Noise of scores, and whether two models differ on the same rows."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest

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
