"""Rank and mass of whole layers, and which layers are lazy, after two versions of the paper."""

from typing import Any

import torch

Statistics = dict[str, list]


def mean_and_std(values_B: torch.Tensor) -> Statistics:
    """Mean and sample standard deviation over the first dimension as lists; the deviation of one is 0."""
    std = values_B.std(dim=0) if len(values_B) > 1 else torch.zeros_like(values_B[0])
    return {"mean": values_B.mean(dim=0).tolist(), "std": std.tolist()}


def protocol_v2(rank_BLH: torch.Tensor, mass_BLH: torch.Tensor) -> dict[str, Statistics]:
    """Largest over the heads in each run, then mean and deviation over the runs (arXiv 2404.08634v2, Section 2)."""
    return {"max_rank": mean_and_std(rank_BLH.amax(dim=-1)), "max_mass": mean_and_std(mass_BLH.amax(dim=-1))}


def protocol_v4(rank_BLH: torch.Tensor, mass_BLH: torch.Tensor) -> dict[str, list[float]]:
    """Mean over the runs, then largest and mean over the heads (arXiv 2404.08634v4)."""
    rank_LH, mass_LH = rank_BLH.mean(dim=0), mass_BLH.mean(dim=0)
    return {
        "max_rank": rank_LH.amax(dim=-1).tolist(),
        "max_mass": mass_LH.amax(dim=-1).tolist(),
        "avg_rank": rank_LH.mean(dim=-1).tolist(),
        "avg_mass": mass_LH.mean(dim=-1).tolist(),
    }


def lazy_layers(protocols: dict[str, dict[str, Any]], protocol: str) -> dict[str, Any]:
    """Lazy layers, lazy groups (first and last layer of each), and the first lazy layer.

    A layer is lazy where MaxRank, rounded down, is 1. Version 4 also calls a run of layers a lazy group where AvgRank,
    rounded down, is 1; for version 2 the groups are the runs of lazy layers.
    """
    if protocol == "v2":
        max_rank = grouped = protocols["v2"]["max_rank"]["mean"]
    else:
        max_rank, grouped = protocols["v4"]["max_rank"], protocols["v4"]["avg_rank"]
    layers = [layer for layer, rank in enumerate(max_rank) if int(rank) == 1]
    groups: list[list[int]] = []
    for layer, rank in enumerate(grouped):
        if int(rank) == 1:
            if groups and groups[-1][1] == layer - 1:
                groups[-1][1] = layer
            else:
                groups.append([layer, layer])
    return {"layers": layers, "groups": groups, "first": layers[0] if layers else None}
