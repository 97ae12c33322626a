"""Rank correlation of measures."""

import numpy as np


def spearman(first: list[float], second: list[float]) -> float:
    """Spearman's rank correlation; equal values share the mean of their ranks.

    Args:
        first, second: as many values of one as of the other; pairs with a NaN are left out.

    Returns:
        From -1 to 1; NaN where fewer than three pairs are left, or one of the two is constant.
    """
    pairs = np.array([first, second], dtype=np.float64)
    pairs = pairs[:, np.isfinite(pairs).all(axis=0)]
    if pairs.shape[1] < 3:
        return float("nan")
    ranks = np.stack([_ranks(values) for values in pairs])
    centred = ranks - ranks.mean(axis=1, keepdims=True)
    norms = np.sqrt((centred**2).sum(axis=1))
    return float(centred[0] @ centred[1] / norms.prod()) if norms.all() else float("nan")


def _ranks(values: np.ndarray) -> np.ndarray:
    _, group, sizes = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(sizes)
    return (ends - (sizes - 1) / 2)[group]
