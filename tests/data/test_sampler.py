"""The order of samples against a slow rewriting in plain Python, brute-force counts and chi-square tests."""

import hashlib
import itertools
import math
import time
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inheritune_lit.data.sampler import CYCLE, MixtureSampler, apportion, micro_batch_samples, permute, round_keys

MASK = 2**64 - 1


def slow_permute(position: int, n: int, text: str) -> int:
    """The permutation as its description says, one integer at a time."""
    digest = hashlib.shake_256(text.encode()).digest(128)
    keys = [int.from_bytes(digest[8 * i : 8 * i + 8], "little") for i in range(16)]
    rows = next(a for a in itertools.count(1) if a * a >= n)
    columns = math.ceil(Fraction(n, rows))
    while True:
        halves, sizes = [position // columns, position % columns], [rows, columns]
        for number, key in enumerate(keys):
            moved, other = number % 2, 1 - number % 2
            z = (halves[other] + key) & MASK
            z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & MASK
            z = (z ^ (z >> 27)) * 0x94D049BB133111EB & MASK
            z = z ^ (z >> 31)
            halves[moved] = (halves[moved] + ((z >> 32) * sizes[moved] >> 32)) % sizes[moved]
        position = halves[0] * columns + halves[1]
        if position < n:
            return position


def slow_samples(blocks: dict[str, int], seed: int, draws: dict[str, int], samples: range) -> list[int]:
    """Samples of a weighted mixture, going through all samples before them."""
    turn_of = [name for name in blocks for _ in range(draws.get(name, 0))]
    first = dict(zip(blocks, itertools.accumulate(blocks.values(), initial=0), strict=False))
    seen: Counter[str] = Counter()
    out = []
    for sample in range(samples.stop):
        cycle, position = divmod(sample, CYCLE)
        name = turn_of[slow_permute(position, CYCLE, f"{seed}/{cycle}/turns 0")]
        epoch, place = divmod(seen[name], blocks[name])
        seen[name] += 1
        if sample in samples:
            out.append(first[name] + slow_permute(place, blocks[name], f"{seed}/{epoch}/blocks {name}"))
    return out


def test_weighted_samples_equal_a_slow_rewriting():
    blocks, draws = {"arxiv": 7, "books": 0, "c4": 1000, "wiki": 1}, {"arxiv": 249, "c4": 9700, "wiki": 51}
    expected = slow_samples(blocks, 11, draws, range(9_900, 10_200))
    sampler = MixtureSampler(blocks, 11, draws)
    assert sampler.blocks(range(9_900, 10_200)).tolist() == expected
    assert [sampler[sample] for sample in (10_199, 9_900, 10_000)] == [expected[299], expected[0], expected[100]]


def test_plain_epochs_equal_a_slow_rewriting():
    sampler = MixtureSampler({"a": 300, "b": 200}, 2**64 - 1)
    expected = [slow_permute(i % 500, 500, f"{2**64 - 1}/{i // 500}/blocks ") for i in range(1234)]
    assert sampler.blocks(range(1234)).tolist() == expected


def test_golden_order():
    """Pinned: an order that changes makes every run in progress wrong."""
    assert MixtureSampler({"a": 1000}, 1337).blocks(range(8)).tolist() == [603, 196, 792, 753, 83, 935, 708, 308]
    weighted = MixtureSampler({"a": 10**8, "b": 3}, 1337, {"a": 9000, "b": 1000})
    assert weighted.blocks(range(5 * 10**9, 5 * 10**9 + 8)).tolist() == [
        28288714,
        87565771,
        34915394,
        19529144,
        85343478,
        100000000,
        63486957,
        80925942,
    ]


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 3000), seed=st.integers(0, 2**64 - 1))
def test_permutation_is_a_bijection(n, seed):
    images = permute(np.arange(n), n, round_keys(seed, "any", 0))
    assert np.array_equal(np.sort(images), np.arange(n))


@pytest.mark.parametrize("n", [10**6, 2**20, 999_983, 1000**2 + 1])
def test_large_permutation_is_a_bijection(n):
    images = permute(np.arange(n), n, round_keys(5, "large", 3))
    assert np.array_equal(np.bincount(images, minlength=n), np.ones(n))


def chi_square(counts: np.ndarray, expected: float) -> float:
    return float(((counts - expected) ** 2).sum() / expected)


# Upper 0.1% points of chi-square (Wilson and Hilferty's approximation): the seeds are fixed, so nothing here flickers.
def critical(freedom: int) -> float:
    return freedom * (1 - 2 / (9 * freedom) + 3.0902 * math.sqrt(2 / (9 * freedom))) ** 3


@pytest.mark.parametrize("n", [3, 4, 5, 6])
def test_all_permutations_are_equally_likely(n):
    trials = 100 * math.factorial(n)
    keys = np.stack([round_keys(seed, "small", 0) for seed in range(trials)], axis=1)
    images = np.stack([permute(np.full(trials, position), n, keys) for position in range(n)], axis=1)
    _, counts = np.unique(images, axis=0, return_counts=True)
    assert len(counts) == math.factorial(n)
    assert chi_square(counts, 100) < critical(math.factorial(n) - 1)


def test_images_and_neighbours_are_uniform():
    n, trials = 1000, 2000
    keys = np.stack([round_keys(seed, "uniform", 7) for seed in range(trials)], axis=1)
    first, second, last = (permute(np.full(trials, position), n, keys) for position in (0, 1, 999))
    for images in (first, second, last):
        assert chi_square(np.bincount(images // 10, minlength=100), trials / 100) < critical(99)
    steps = (second - first) % n  # 1 to n - 1
    assert chi_square(np.bincount((steps - 1) * 37 // 999, minlength=37), trials / 37) < critical(36)
    whole = permute(np.arange(10**6), 10**6, round_keys(1, "uniform", 0))
    # Where the first tenth goes, and steps between neighbours within one permutation.
    assert chi_square(np.bincount(whole[: 10**5] // 10**4, minlength=100), 1000) < critical(99)
    steps = np.diff(whole) % 10**6
    assert chi_square(np.bincount(steps // 10**4, minlength=100), (10**6 - 1) / 100) < critical(99)


def test_epochs_are_independent():
    n = 200
    epochs = np.stack([permute(np.arange(n), n, round_keys(3, "blocks x", epoch)) for epoch in range(400)])
    # A block's places in successive epochs, in a table of 10 x 10.
    places = np.argsort(epochs, axis=1) // 20
    pairs = np.bincount((places[:-1] * 10 + places[1:]).ravel(), minlength=100)
    assert chi_square(pairs, pairs.sum() / 100) < critical(81)


def test_each_token_is_seen_exactly_eight_times_in_eight_epochs():
    blocks = {"a": 123, "b": 0, "c": 4321, "d": 1}
    sampler, n = MixtureSampler(blocks, 17), 123 + 4321 + 1
    seen = np.bincount(sampler.blocks(range(8 * n)), minlength=n)
    assert np.array_equal(seen, np.full(n, 8))
    assert np.array_equal(sampler.counts(0, 8 * n), seen)
    epochs = sampler.blocks(range(8 * n)).reshape(8, n)
    assert all(np.array_equal(np.sort(epoch), np.arange(n)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 8


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 400), min_size=1, max_size=4),
    weights=st.none() | st.lists(st.integers(1, 50), min_size=4, max_size=4),
    start=st.integers(0, 25_000),
    length=st.integers(1, 12_000),
)
def test_counts_equal_brute_force(sizes, weights, start, length):
    blocks = {f"d{number}": size for number, size in enumerate(sizes)}
    draws = apportion(dict(zip(blocks, weights, strict=False)), CYCLE) if weights else None
    sampler = MixtureSampler(blocks, 3, draws)
    seen = np.bincount(sampler.blocks(range(start, start + length)), minlength=sum(sizes))
    assert np.array_equal(sampler.counts(start, start + length), seen)
    edges = np.cumsum([0, *sizes])
    by_domain = {name: int(seen[edges[i] : edges[i + 1]].sum()) for i, name in enumerate(blocks)}
    assert sampler.domain_counts(start, start + length) == by_domain


def test_a_domain_visits_all_its_blocks_before_any_twice():
    sampler = MixtureSampler({"small": 30, "large": 5000}, 3, {"small": 700, "large": 9300})
    order = sampler.blocks(range(30_000))
    for first, size in ((0, 30), (30, 5000)):
        own = order[(order >= first) & (order < first + size)] - first
        for epoch in range(len(own) // size):
            assert np.array_equal(np.sort(own[epoch * size : (epoch + 1) * size]), np.arange(size))


def test_every_cycle_follows_the_weights_exactly():
    weights = {"arxiv": 0.025, "book": 0.045, "c4": 0.15, "cc": 0.67, "github": 0.045, "se": 0.02, "wiki": 0.045}
    draws = apportion(weights, CYCLE)
    assert draws == {name: round(10_000 * weight) for name, weight in weights.items()}
    sampler = MixtureSampler(dict.fromkeys(weights, 50), 1, draws)
    cycles = sampler.blocks(range(3 * CYCLE)).reshape(3, CYCLE) // 50
    for cycle in cycles:
        assert np.bincount(cycle).tolist() == list(draws.values())
    # Interleaved: no stretch of a cycle is far from the weights. 99.99% points of the normal distribution.
    for stretch in cycles.reshape(-1, 1000):
        for count, weight in zip(np.bincount(stretch, minlength=7), weights.values(), strict=True):
            assert abs(count - 1000 * weight) < 3.9 * math.sqrt(1000 * weight * (1 - weight))
    assert not np.array_equal(cycles[0], cycles[1])


@settings(max_examples=200, deadline=None)
@given(weights=st.lists(st.floats(0, 1e6), min_size=1, max_size=6).filter(any), total=st.integers(1, 10_000))
def test_apportionment_is_the_nearest_in_whole_numbers(weights, total):
    named = {str(number): weight for number, weight in enumerate(weights)}
    counts = apportion(named, total)
    quotas = {name: Fraction(weight) * total / sum(map(Fraction, weights)) for name, weight in named.items()}
    assert sum(counts.values()) == total
    for name in named:
        assert abs(counts[name] - quotas[name]) < 1
        assert counts[name] >= 0
        for other in named:  # moving one sample from one domain to another never brings both nearer in all
            if name != other and counts[name]:
                here = abs(counts[name] - quotas[name]) + abs(counts[other] - quotas[other])
                moved = abs(counts[name] - 1 - quotas[name]) + abs(counts[other] + 1 - quotas[other])
                assert moved >= here


def test_a_changed_mixture_goes_on_where_each_domain_is():
    blocks = {"a": 1000, "b": 5000}
    old = MixtureSampler(blocks, 9, {"a": 3000, "b": 7000})
    drawn = old.domain_counts(0, 2500)
    new = MixtureSampler({**blocks, "c": 400}, 9, {"a": 6000, "b": 2000, "c": 2000}, 2500, drawn)
    order = np.concatenate([old.blocks(range(2500)), new.blocks(range(2500, 13_000))])
    for first, size in ((0, 1000), (1000, 5000), (6000, 400)):
        own = order[(order >= first) & (order < first + size)]
        for epoch in range(-(-len(own) // size)):
            some = own[epoch * size : (epoch + 1) * size]
            assert len(set(some.tolist())) == len(some)
    seen = np.bincount(new.blocks(range(2600, 13_000)), minlength=6400)
    assert np.array_equal(new.counts(2600, 13_000), seen)
    assert new.domain_counts(2500, 12_500) == {"a": 6000, "b": 2000, "c": 2000}


STAGES = [
    ({"a": 1000}, None),
    ({"a": 1000, "b": 700}, None),  # a domain more
    ({"a": 1300, "b": 700}, None),  # a domain that grew
    ({"0": 50, "a": 1300, "b": 600}, {"0": 1000, "a": 6000, "b": 3000}),  # one before the others, one that shrank
    ({"a": 1300, "b": 900}, {"a": 9000, "b": 1000}),
    ({"a": 1300, "b": 900, "c": 10}, None),
]


@pytest.mark.parametrize("stages", [STAGES, STAGES[1:3] + STAGES[:1], STAGES[3:]])
@pytest.mark.parametrize(
    "steps", [[0, 500, 900, 1500, 1700, 2100, 9000], [0, 1, 2, 3, 4, 5, 7000], [0, 3000, 3700, 6000]]
)
def test_no_sample_comes_again_in_an_epoch_whatever_happens_to_the_data(stages, steps):
    """Followed by hand: which samples each domain has given in its epoch."""
    sampler, given = None, {}
    for (sizes, draws), start, stop in zip(stages, steps, steps[1:], strict=False):
        sampler = MixtureSampler(sizes, 4, draws, start, sampler)
        order = sampler.blocks(range(start, stop))
        assert order[1:].tolist() == sampler.blocks(range(start + 1, stop)).tolist()
        assert np.array_equal(sampler.counts(start + 1, stop), np.bincount(order[1:], minlength=sum(sizes.values())))
        given = {name: {number for number in given.get(name, ()) if number < size} for name, size in sizes.items()}
        numbered = [(name, number) for name, size in sizes.items() for number in range(size)]
        for name, number in (numbered[sample] for sample in order.tolist()):
            assert number not in given[name]
            given[name].add(number)
            epoch = list(sizes) if draws is None else [name]  # without weights all domains have one epoch
            if all(len(given[domain]) == sizes[domain] for domain in epoch):
                given |= {domain: set() for domain in epoch}


def test_data_added_in_an_epoch_ends_it_with_all_samples_once():
    old = MixtureSampler({"a": 1000}, 1)
    new = MixtureSampler({"a": 1000, "b": 1000}, 1, None, 500, old)
    order = np.concatenate([old.blocks(range(500)), new.blocks(range(500, 4000))])
    assert np.bincount(order[:2000], minlength=2000).tolist() == [1] * 2000
    assert np.bincount(order[2000:], minlength=2000).tolist() == [1] * 2000
    assert new.domain_counts(500, 2000) == {"a": 500, "b": 1000}


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_ranks_share_a_step_without_overlap(ranks):
    per_rank = [
        [
            sample
            for micro in range(16 // (2 * ranks))
            for sample in micro_batch_samples(3, micro, 16, 2, rank=rank, ranks=ranks)
        ]
        for rank in range(ranks)
    ]
    together = sorted(itertools.chain.from_iterable(per_rank))
    assert together == list(range(48, 64))
    # The micro-batches of all ranks, in turn, are those of one rank.
    one = [micro_batch_samples(3, micro, 16, 2) for micro in range(8)]
    assert one == [micro_batch_samples(3, m, 16, 2, r, ranks) for m in range(8 // ranks) for r in range(ranks)]


def test_a_huge_domain_costs_neither_time_nor_memory():
    import tracemalloc

    sampler = MixtureSampler({"a": 10**8, "b": 5 * 10**7}, 1, {"a": 5000, "b": 5000})
    tracemalloc.start()
    start = time.perf_counter()
    for number in range(20):
        sampler[number * 10**8 + 12_345]
    seconds = time.perf_counter() - start
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seconds < 2  # a materialised permutation takes several seconds and 800 MB each
    assert peak < 20e6
