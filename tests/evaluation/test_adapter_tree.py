"""The packed prefix tree, against its definition."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from inheritune_lit.evaluation.scoring import build_row, split_rows, to_ids, to_key, tree_size

# Few different ids make shared beginnings and sequences that begin others; 300 and 70000 need more than one byte.
IDS = st.sampled_from([0, 1, 300, 70_000])
SEQUENCES = st.lists(st.lists(IDS, min_size=1, max_size=7), min_size=1, max_size=12).map(
    lambda sequences: sorted({tuple(sequence) for sequence in sequences})
)


@given(SEQUENCES)
def test_keys_sort_like_their_ids(sequences):
    assert [tuple(to_ids(key)) for key in sorted(map(to_key, sequences))] == sequences


@given(SEQUENCES)
def test_a_row_is_the_prefix_tree(sequences):
    row = build_row(map(to_key, sequences))
    prefixes = {sequence[:length] for sequence in sequences for length in range(1, len(sequence) + 1)}
    prefix_of = {}
    for sequence, path in zip(sequences, row.paths, strict=True):
        for position, node in enumerate(path):
            prefix_of[int(node)] = sequence[: position + 1]
    assert sorted(prefix_of) == list(range(len(row.tokens_L)))
    assert sorted(prefix_of.values()) == sorted(prefixes)  # every prefix once
    for node, prefix in prefix_of.items():
        assert row.tokens_L[node] == prefix[-1]
        assert row.depth_L[node] == len(prefix) - 1
        ancestors = {other for other in prefix_of if prefix[: len(prefix_of[other])] == prefix_of[other]}
        assert {other for other in prefix_of if other <= node < row.end_L[other]} == ancestors


@given(SEQUENCES, st.integers(1, 20))
def test_rows_keep_to_their_capacity_and_lose_nothing(sequences, capacity):
    keys = [to_key(sequence) for sequence in sequences]
    assert tree_size(keys) == len(
        {sequence[:length] for sequence in sequences for length in range(1, len(sequence) + 1)}
    )
    rows = split_rows(keys, capacity)
    assert [key for row in rows for key in row] == keys
    sizes = [len(build_row(row).tokens_L) for row in rows]
    assert all(size <= capacity or len(row) == 1 for size, row in zip(sizes, rows, strict=True))
    if capacity >= sum(map(len, sequences)):
        assert len(rows) == 1


def test_rows_of_four_times_the_prefix_compute_little_twice():
    draw = np.random.default_rng(0)
    prefix = draw.integers(0, 30_000, 500)
    keys = sorted(to_key([*prefix, *draw.integers(0, 30_000, 60)]) for _ in range(200))
    computed = sum(map(tree_size, split_rows(keys, 4 * 560)))
    assert tree_size(keys) < computed < 1.3 * tree_size(keys)
