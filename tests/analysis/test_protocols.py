"""Lazy layers by both versions of the paper, on ranks that were made up."""

import numpy as np
import pytest
import torch

from inheritune_lit.analysis.measures import both_protocols, lazy_layers, mean_and_std
from inheritune_lit.analysis.result import LazyLayers


def ranks() -> torch.Tensor:
    """(B=2, L=4, H=2): the last two layers are the cases that tell the protocols apart."""
    return torch.tensor(
        [[[9, 5], [1, 1], [1, 4], [1, 2]], [[7, 3], [1, 1], [4, 1], [2, 1]]],
        dtype=torch.float64,
    )


def test_protocols_take_the_largest_head_at_different_times():
    rank_BLH = ranks()
    both = both_protocols(rank_BLH, rank_BLH + 1)
    v2, v4 = both.v2, both.v4
    assert v2.max_rank.mean == [8, 1, 4, 2]
    assert v2.max_rank.std == pytest.approx(np.std([9, 7], ddof=1) * np.array([1, 0, 0, 0]))
    assert v4.max_rank == [8, 1, 2.5, 1.5]
    assert v4.avg_rank == [6, 1, 2.5, 1.5]
    assert v4.max_mass == [9, 2, 3.5, 2.5] and v4.avg_mass == [7, 2, 3.5, 2.5]
    assert v2.max_mass.mean == [9, 2, 5, 3]


def test_lazy_layers_of_both_protocols():
    both = both_protocols(ranks(), ranks())
    assert lazy_layers(both, "v2") == LazyLayers([1], [[1, 1]], 1)
    assert lazy_layers(both, "v4") == LazyLayers([1, 3], [[1, 1], [3, 3]], 1)


def test_groups_of_version_4_go_by_the_average_head():
    rank_BLH = torch.tensor([[[1, 1], [1, 2], [5, 5], [1, 1]]], dtype=torch.float64)
    both = both_protocols(rank_BLH, rank_BLH)
    assert lazy_layers(both, "v4") == LazyLayers([0, 3], [[0, 1], [3, 3]], 0)


def test_a_model_without_lazy_layers():
    rank_BLH = torch.full((3, 2, 2), 5.0, dtype=torch.float64)
    both = both_protocols(rank_BLH, rank_BLH)
    assert lazy_layers(both, "v4") == LazyLayers([], [], None)


def test_the_deviation_of_one_sequence_is_0():
    assert mean_and_std(torch.tensor([[2.0, 3.0]])) == {"mean": [2, 3], "std": [0, 0]}
