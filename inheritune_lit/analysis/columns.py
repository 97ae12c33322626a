"""What the columns and rows of attention matrices say: mass, attention sink, entropy."""

import torch

from inheritune_lit.analysis.rank import count_to_reach


def attention_mass(attention_NTT: torch.Tensor, tau: float) -> torch.Tensor:
    """Column mass m*, (N,), int64: the least number of columns that hold a share ``tau`` of the squared Frobenius norm.

    Paper, Section 2. By Schur and Horn m* is never below the rank k* at the same threshold.
    """
    return count_to_reach(attention_NTT.double().square().sum(dim=-2), tau)


def sink_mass(attention_BHTT: torch.Tensor) -> torch.Tensor:
    """Mean attention that the tokens pay to the first one, (B, H) (Gu et al. 2024, arXiv 2410.10781, Section 3)."""
    return attention_BHTT[..., 0].mean(dim=-1)


def entropy(attention_BHTT: torch.Tensor) -> torch.Tensor:
    """Mean entropy of the rows in nats, (B, H) (Zhai et al. 2023, arXiv 2303.06296, Section 3)."""
    return torch.special.entr(attention_BHTT).sum(dim=-1).mean(dim=-1)


def entropy_without_sink(attention_BHTT: torch.Tensor) -> torch.Tensor:
    """Mean entropy in nats of what the rows pay to others than the first token, scaled to sum up to 1, (B, H).

    Rows in which nothing is left after rounding are left out; NaN where that is all of them, or T = 1.
    """
    rest_BHTT = attention_BHTT[..., 1:, 1:]
    sums_BHT = rest_BHTT.sum(dim=-1)
    counts_BHT = sums_BHT > torch.finfo(attention_BHTT.dtype).tiny
    shares_BHTT = rest_BHTT / sums_BHT.where(counts_BHT, torch.ones_like(sums_BHT)).unsqueeze(-1)
    rows_BHT = torch.special.entr(shares_BHTT).sum(dim=-1) * counts_BHT
    return rows_BHT.sum(dim=-1) / counts_BHT.sum(dim=-1)
