"""Weights turned into samples a cycle, against plain arithmetic."""

from fractions import Fraction

import pytest

from inheritune_lit.data.sampler import DomainSize, make_mixture
from inheritune_lit.errors import UserError

# RedPajama's sample: two domains of Common Crawl, one domain without a sample.
SIZES = {
    "arxiv": DomainSize(100, 900),
    "c4": DomainSize(300, 3000),
    "cc_2019-30": DomainSize(300, 2400),
    "cc_2023-06": DomainSize(100, 800),
    "wiki": DomainSize(0, 0),
}


def test_names_with_an_underscore_share_a_weight_by_their_blocks():
    mixture = make_mixture(SIZES, {"arxiv": 0.2, "c4": 0.3, "cc": 0.5})
    assert mixture.draws == {"arxiv": 2000, "c4": 3000, "cc_2019-30": 3750, "cc_2023-06": 1250}
    own = make_mixture(SIZES, {"cc": 1, "cc_2023-06": 3})  # named itself, so not part of "cc"
    assert own.draws == {"cc_2019-30": 2500, "cc_2023-06": 7500}


def test_uniform_leaves_out_what_has_no_sample():
    assert make_mixture(SIZES, "uniform").draws == dict.fromkeys(list(SIZES)[:4], 2500)


def test_weights_are_relative():
    assert make_mixture(SIZES, {"arxiv": 3, "c4": 9}).draws == make_mixture(SIZES, {"arxiv": 0.25, "c4": 0.75}).draws


def test_shares_epochs_and_tokens():
    mixture = make_mixture(SIZES, {"arxiv": 1, "c4": 3})
    assert mixture.share("c4") == Fraction(3, 4)
    assert mixture.share("cc_2019-30") == 0
    assert mixture.tokens_per_sample == Fraction(1, 4) * 9 + Fraction(3, 4) * 10
    assert [mixture.epochs(name, 400) for name in SIZES] == [1.0, 1.0, 0.0, 0.0, 0.0]
    whole = make_mixture(SIZES, "proportional")
    assert whole.tokens_per_sample == Fraction(900 + 3000 + 2400 + 800, 800)
    assert {whole.epochs(name, 1600) for name in SIZES if name != "wiki"} == {2.0}


@pytest.mark.parametrize("weights", [{"wiki": 1}, {"w": 1}, {"arxiv": float("inf")}, {"arxiv": -1}, {"c4": 0}, {}])
def test_no_mixture(weights):
    with pytest.raises(UserError, match=r"^--mixture\.weights") as refused:
        make_mixture(SIZES, weights)
    assert "\n" not in str(refused.value)
