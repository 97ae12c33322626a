"""Spearman's correlation against scipy's and by hand."""

import math

import numpy as np
import pytest
from scipy.stats import spearmanr

from inheritune_lit.analysis.page import spearman


@pytest.mark.parametrize("seed", range(20))
def test_equals_scipys_with_and_without_ties(seed):
    draw = np.random.default_rng(seed)
    first, second = draw.integers(0, 4 if seed % 2 else 1000, size=(2, draw.integers(3, 40))).tolist()
    expected = spearmanr(first, second).statistic
    assert spearman(first, second) == pytest.approx(expected, abs=1e-12, nan_ok=True)


def test_by_hand():
    # Without ties: 1 - 6 sum(d^2) / (n (n^2 - 1)), here with d = 0, 1, 1, 0.
    assert spearman([1, 2, 3, 4], [10, 30, 20, 40]) == pytest.approx(1 - 6 * 2 / (4 * 15))
    assert spearman([1, 5, 9], [math.exp(1), math.exp(5), math.exp(9)]) == pytest.approx(1)
    assert spearman([1, 5, 9], [3, 2, 1]) == pytest.approx(-1)


def test_missing_values_are_left_out_and_constants_have_none():
    nan = math.nan
    assert spearman([1, nan, 2, 3, 4], [10, 0, 30, 20, 40]) == pytest.approx(0.8)
    assert math.isnan(spearman([1, 1, 1, 1], [1, 2, 3, 4]))
    assert math.isnan(spearman([1, 2, nan], [1, 2, 3]))
