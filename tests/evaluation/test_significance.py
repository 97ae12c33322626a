"""Tests of differences against closed forms and exhaustive enumeration."""

import itertools
import math

import numpy as np
import pytest

from inheritune_lit.evaluation.cells import (
    bootstrap_stderr,
    compare,
    is_above,
    mcnemar_exact,
    word_perplexity,
)


@pytest.mark.parametrize(("only_first", "only_second"), [(0, 0), (1, 0), (0, 6), (3, 7), (5, 5), (9, 2)])
def test_mcnemar_is_the_enumeration_of_all_coin_tosses(only_first, only_second):
    first = [1] * only_first + [0] * only_second + [1, 0, 1]
    second = [0] * only_first + [1] * only_second + [1, 0, 1]
    tosses = only_first + only_second
    as_far = sum(
        abs(2 * sum(heads) - tosses) >= abs(only_first - only_second)
        for heads in itertools.product((0, 1), repeat=tosses)
    )
    assert mcnemar_exact(first, second) == pytest.approx(as_far / 2**tosses)


def test_mcnemar_of_thousands_of_rows_follows_the_normal_law():
    only_first, only_second = 5200, 5000
    first = [1] * only_first + [0] * only_second
    second = [0] * only_first + [1] * only_second
    z = (only_first - only_second - 1) / math.sqrt(only_first + only_second)
    assert mcnemar_exact(first, second) == pytest.approx(math.erfc(z / math.sqrt(2)), rel=0.01)


def test_the_bootstrap_agrees_with_flipping_every_sign():
    draw = np.random.default_rng(5)
    first = draw.random(12)
    second = first + draw.normal(0.06, 0.12, 12)
    gaps = second - first
    signs = np.array(list(itertools.product((-1, 1), repeat=12)))
    permutation = (np.abs(signs @ gaps) >= abs(gaps.sum()) - 1e-12).mean()
    found = compare(first, second)
    assert found.test == "paired bootstrap"
    assert found.value == pytest.approx(gaps.mean())
    assert found.p_value == pytest.approx(permutation, abs=0.05)


def test_equal_models_do_not_differ_and_far_ones_do():
    rows = np.random.default_rng(0).random(50)
    assert not compare(rows, rows).differs
    assert compare(rows, rows + 1).differs
    assert compare(np.zeros(40), np.r_[np.ones(9), np.zeros(31)]).test == "McNemar exact"
    assert compare(rows[:1], rows[:1]) is None


def test_bootstrap_noise_of_a_perplexity_is_the_delta_methods():
    draw = np.random.default_rng(2)
    words = draw.integers(80, 120, 60)
    rows = np.stack([-words * draw.normal(3.0, 0.3, 60), words], axis=1)
    ratio = rows[:, 0].sum() / words.sum()
    spread = math.sqrt(((rows[:, 0] - ratio * words) ** 2).sum()) / words.sum()
    assert word_perplexity(rows) == pytest.approx(math.exp(-ratio))
    assert bootstrap_stderr(rows, word_perplexity) == pytest.approx(math.exp(-ratio) * spread, rel=0.08)
    assert bootstrap_stderr(rows[:1], word_perplexity) is None


def test_above_a_floor_means_beyond_the_noise():
    assert is_above(52.0, 0.9, 50.0) is True
    assert is_above(52.0, 1.1, 50.0) is False
    assert is_above(52.0, None, 50.0) is None
