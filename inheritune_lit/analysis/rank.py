"""Approximate rank of attention matrices, many at a time, and the lazy layers that follow from it."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch

from inheritune_lit.analysis.result import ByLayer, LazyLayers, Protocols, ProtocolV2, ProtocolV4

TIE = 1e-9
"""A share this far below the threshold counts as reaching it: 90 ones of 100 are 90%, however they are summed."""
_CHUNK = 64
_SUBSPACE = 16
_MARGIN = 3e-5
"""What shares computed in fp32 must be clear of; a test shows that their rounding is less than a tenth of it."""


def count_to_reach(energies_NT: torch.Tensor, tau: float) -> torch.Tensor:
    """How many of the largest energies hold a share ``tau`` of their sum, (N,), int64.

    Args:
        energies_NT: squared singular values, or squared norms of columns; fp64, any order.
    """
    running_NT = energies_NT.sort(dim=-1, descending=True).values.cumsum(dim=-1)
    return (running_NT < (tau - TIE) * running_NT[:, -1:]).sum(dim=-1) + 1


def attention_rank(attention_NTT: torch.Tensor, tau: float) -> torch.Tensor:
    """Approximate rank k* of each matrix, (N,), int64, on the CPU.

    The least k such that the k largest squared singular values hold a share ``tau`` of them all (paper, Section 2,
    tau = 0.9). Squared singular values of A are the eigenvalues of A A^T. For most matrices the largest few suffice:
    bounds from a subspace decide, and where they do not, all eigenvalues in fp64 do. The integers are those of a full
    SVD.

    Args:
        attention_NTT: fp32.
        tau: threshold in (0, 1].
    """
    attention_NTT = attention_NTT.detach().cpu()
    chunks = attention_NTT.split(_CHUNK)
    threads = min(torch.get_num_threads(), len(chunks))
    if threads <= 1:
        return torch.cat([_rank(chunk, tau) for chunk in chunks])
    # LAPACK goes through a batch one matrix after the other, on one core.
    with ThreadPoolExecutor(threads, initializer=partial(torch.set_num_threads, 1)) as pool:
        return torch.cat(list(pool.map(partial(_rank, tau=tau), chunks)))


def exact_rank(attention_NTT: torch.Tensor, tau: float) -> torch.Tensor:
    """The same from all eigenvalues, in fp64.

    Their error is about 1e-14 of the largest, so a share is wrong by 1e-12 at most: a thousandth of ``TIE``.
    """
    attention_NTT = attention_NTT.double()
    eigenvalues_NT = torch.linalg.eigvalsh(attention_NTT @ attention_NTT.mT).clamp(min=0)
    return count_to_reach(eigenvalues_NT, tau)


def _rank(attention_NTT: torch.Tensor, tau: float) -> torch.Tensor:
    rank_N = torch.zeros(len(attention_NTT), dtype=torch.int64)
    energies_NT = attention_NTT.square().sum(dim=-2)
    # The first squared singular value is at least that of any column.
    rank_N[energies_NT.amax(dim=-1) > (tau + _MARGIN) * energies_NT.sum(dim=-1)] = 1
    open_M = (rank_N == 0).nonzero().squeeze(1)
    gram_MTT = attention_NTT[open_M] @ attention_NTT[open_M].mT
    for decide in (_rank_by_subspace, _rank_by_eigenvalues):
        if len(open_M):
            rank_M = decide(gram_MTT, tau)
            rank_N[open_M] = rank_M
            gram_MTT, open_M = gram_MTT[rank_M == 0], open_M[rank_M == 0]
    if len(open_M):
        rank_N[open_M] = exact_rank(attention_NTT[open_M], tau)
    return rank_N


def _rank_by_eigenvalues(gram_NTT: torch.Tensor, tau: float) -> torch.Tensor:
    """Rank from all eigenvalues in fp32 where rounding cannot change it, 0 elsewhere."""
    eigenvalues_NT = torch.linalg.eigvalsh(gram_NTT).flip(-1).clamp(min=0).double()
    running_NT = eigenvalues_NT.cumsum(dim=-1)
    shares_NT = running_NT / running_NT[:, -1:]
    near_N = ((shares_NT - tau).abs() < _MARGIN).any(dim=-1)
    return torch.where(near_N, 0, (shares_NT < tau).sum(dim=-1) + 1)


def _rank_by_subspace(gram_NTT: torch.Tensor, tau: float) -> torch.Tensor:
    """Rank where bounds from a subspace agree on it, 0 elsewhere.

    With Ritz values r_1 >= r_2 >= ... of G = A A^T in any subspace, the j largest eigenvalues l_i of G sum up

    * to at least r_1 + ... + r_j (Ky Fan), and
    * to at most that plus f / (2 r_j), with f = |G|_F^2 - sum r_i^2: each l_i = r_i + d_i with d_i >= 0 (Cauchy), and
      sum l_i^2 <= |G|_F^2 leaves f >= sum 2 r_i d_i >= 2 r_j (d_1 + ... + d_j).
    """
    total_N1 = gram_NTT.diagonal(dim1=-2, dim2=-1).sum(dim=-1, keepdim=True)
    squares_N1 = gram_NTT.square().sum(dim=(-2, -1)).unsqueeze(-1)
    generator = torch.Generator().manual_seed(0)
    width = min(_SUBSPACE, gram_NTT.shape[-1])
    basis_NTW = torch.randn(gram_NTT.shape[-1], width, generator=generator).expand(len(gram_NTT), -1, -1)
    for _ in range(2):
        basis_NTW = torch.linalg.qr(gram_NTT @ basis_NTW).Q
    projected_NWW = basis_NTW.mT @ (gram_NTT @ basis_NTW)
    ritz_NW = torch.linalg.eigvalsh(projected_NWW).flip(-1).clamp(min=1e-30)
    left_N1 = (squares_N1 - ritz_NW.square().sum(dim=-1, keepdim=True)).clamp(min=0) + _MARGIN * squares_N1
    least_NW = ritz_NW.cumsum(dim=-1) / total_N1
    most_NW = least_NW + left_N1 / (2 * ritz_NW * total_N1)
    at_most_N = (least_NW < tau + _MARGIN).sum(dim=-1) + 1
    # ``most`` need not rise with j, the true sum does: all j below the rank must stay under the threshold.
    at_least_N = (most_NW < tau - _MARGIN).int().cumprod(dim=-1).sum(dim=-1) + 1
    return torch.where((at_most_N == at_least_N) & (at_most_N <= width), at_most_N, 0)


def mean_and_std(values_B: torch.Tensor) -> dict[str, list]:
    """Mean and sample standard deviation over the first dimension as lists; the deviation of one is 0."""
    std = values_B.std(dim=0) if len(values_B) > 1 else torch.zeros_like(values_B[0])
    return {"mean": values_B.mean(dim=0).tolist(), "std": std.tolist()}


def both_protocols(rank_BLH: torch.Tensor, mass_BLH: torch.Tensor) -> Protocols:
    """Rank and mass of layers by both versions of the paper, from those of each sequence and head."""
    rank_LH, mass_LH = rank_BLH.mean(dim=0), mass_BLH.mean(dim=0)
    return Protocols(
        v2=ProtocolV2(
            max_rank=ByLayer(**mean_and_std(rank_BLH.amax(dim=-1))),
            max_mass=ByLayer(**mean_and_std(mass_BLH.amax(dim=-1))),
        ),
        v4=ProtocolV4(
            max_rank=rank_LH.amax(dim=-1).tolist(),
            max_mass=mass_LH.amax(dim=-1).tolist(),
            avg_rank=rank_LH.mean(dim=-1).tolist(),
            avg_mass=mass_LH.mean(dim=-1).tolist(),
        ),
    )


def lazy_layers(protocols: Protocols, protocol: str) -> LazyLayers:
    """Lazy layers and groups by one version of the paper.

    A layer is lazy where MaxRank, rounded down, is 1. Version 4 also calls a run of layers a lazy group where AvgRank,
    rounded down, is 1; for version 2 the groups are the runs of lazy layers.
    """
    if protocol == "v2":
        max_rank = grouped = protocols.v2.max_rank.mean
    else:
        max_rank, grouped = protocols.v4.max_rank, protocols.v4.avg_rank
    layers = [layer for layer, rank in enumerate(max_rank) if int(rank) == 1]
    groups: list[list[int]] = []
    for layer, rank in enumerate(grouped):
        if int(rank) == 1:
            if groups and groups[-1][1] == layer - 1:
                groups[-1][1] = layer
            else:
                groups.append([layer, layer])
    return LazyLayers(layers, groups, layers[0] if layers else None)
