"""What layers do to the residual stream."""

import math

import torch
from torch.nn import functional as F


def block_influence(before_BTC: torch.Tensor, after_BTC: torch.Tensor) -> torch.Tensor:
    """1 - mean cosine over tokens of a layer's input and output, (B,) (Men et al. 2024, arXiv 2403.03853, Eq. 1)."""
    return 1 - F.cosine_similarity(before_BTC.double(), after_BTC.double(), dim=-1).mean(dim=-1)


def output_variance(after_BTC: torch.Tensor) -> torch.Tensor:
    """Variance of all entries of a layer's output, (B,) (Sun et al. 2025, arXiv 2502.05795)."""
    return after_BTC.double().flatten(1).var(dim=1, correction=0)


def angular_distances(last_LBC: torch.Tensor) -> dict[int, list[float]]:
    """Angle over pi between what goes into a span and what comes out, mean over sequences, by length, then first layer.

    Of the last token (Gromov et al. 2024, arXiv 2403.17887, Section 3.1).

    Args:
        last_LBC: the last token's state before each layer and after the last, L + 1 of them.
    """
    unit_BLC = F.normalize(last_LBC.double(), dim=-1).transpose(0, 1)
    cosines_BLL = (unit_BLC @ unit_BLC.mT).clamp(-1, 1)
    angles_LL = (cosines_BLL.arccos() / math.pi).mean(dim=0)
    layers = len(last_LBC) - 1
    return {length: angles_LL.diagonal(length).tolist() for length in range(1, layers + 1)}
