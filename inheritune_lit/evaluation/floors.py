"""What a model that has learnt nothing scores."""

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

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
