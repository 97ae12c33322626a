"""The stop rule on constructed losses, and its standard error against loops and simulation."""

import math
import random

import numpy as np
import pytest

from inheritune_lit.errors import UserError
from inheritune_lit.evaluation.held_out import BlockLosses, compare
from inheritune_lit.studies.args import GrowArgs


def losses(values: list[float], targets: list[int] | int = 10) -> BlockLosses:
    """Samples with these mean losses."""
    counts = [targets] * len(values) if isinstance(targets, int) else targets
    return BlockLosses(
        [value * count for value, count in zip(values, counts, strict=True)], counts, ["a"] * len(values)
    )


def test_difference_and_stderr_are_those_of_the_single_differences():
    draw = random.Random(0)
    theirs = [draw.uniform(1, 6) for _ in range(40)]
    ours = [value + draw.gauss(0.03, 0.02) for value in theirs]
    differences = np.array(ours) - np.array(theirs)
    found = compare(losses(ours), losses(theirs), margin=0.0)
    assert found.difference == pytest.approx(differences.mean())
    assert found.stderr == pytest.approx(differences.std(ddof=1) / math.sqrt(40))
    assert (found.loss, found.reference) == pytest.approx((np.mean(ours), np.mean(theirs)))
    # Samples differ far more from each other than the models do.
    assert found.stderr < 0.05 * np.std(theirs, ddof=1) / math.sqrt(40)


def test_stderr_where_samples_have_different_numbers_of_targets():
    draw = random.Random(1)
    targets = [draw.randint(1, 30) for _ in range(400)]
    theirs = [draw.uniform(1, 6) for _ in targets]
    ours = [value + draw.gauss(0.1, 0.3) for value in theirs]
    found = compare(losses(ours, targets), losses(theirs, targets), margin=0.0)
    sums = [(a - b) * count for a, b, count in zip(ours, theirs, targets, strict=True)]
    assert found.difference == pytest.approx(sum(sums) / sum(targets))
    # The bootstrap knows nothing of the formula.
    rng = np.random.default_rng(0)
    chosen = rng.integers(0, 400, (4000, 400))
    means = np.array(sums)[chosen].sum(axis=1) / np.array(targets)[chosen].sum(axis=1)
    assert found.stderr == pytest.approx(means.std(), rel=0.05)


@pytest.mark.parametrize(
    ("shift", "noise", "margin", "verdict"),
    [
        (-0.05, 0.01, 0.0, "met"),
        (0.05, 0.01, 0.0, "worse"),
        (0.05, 0.01, 0.1, "met"),
        (0.05, 0.01, 0.01, "worse"),
        (0.0, 0.01, 0.0, "undecided"),
        (0.0, 0.01, 0.01, "met"),
        (-0.01, 1.0, 0.0, "undecided"),  # better, but by less than can be seen
        (0.0, 0.0, 0.0, "met"),  # the reference itself
    ],
)
def test_verdict(shift, noise, margin, verdict):
    theirs = [2.0 + 0.1 * number for number in range(50)]
    ours = [value + shift + noise * (-1) ** number for number, value in enumerate(theirs)]
    found = compare(losses(ours), losses(theirs), margin)
    assert (found.verdict, found.met) == (verdict, verdict == "met")
    words = found.words()
    assert f"{found.difference:+.4f} ± {found.stderr:.4f} (paired), margin {margin:g}" in words


def test_a_model_at_the_margin_is_passed_one_time_in_twenty():
    rng = np.random.default_rng(3)
    passed = 0
    for _ in range(2000):
        differences = rng.normal(0.02, 0.1, 100)  # as much worse as the margin allows
        passed += compare(losses(list(2 + differences)), losses([2.0] * 100), margin=0.02).met
    assert passed / 2000 == pytest.approx(0.05, abs=0.02)


@pytest.mark.parametrize("margin", [-0.01, math.nan, math.inf, -math.inf])
def test_impossible_margin(margin):
    with pytest.raises(UserError, match=r"--margin is .*; give the nats"):
        GrowArgs("reference", "data", "out", margin=margin)
