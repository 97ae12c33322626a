"""Rank and mass against theory and against numpy's singular values."""

import numpy as np
import pytest
import torch
from attention_samples import closed_forms, random_attention

from inheritune_lit.analysis.args import AnalyzeArgs
from inheritune_lit.analysis.measures import (
    TIE,
    attention_mass,
    attention_rank,
    entropy,
    entropy_without_sink,
    sink_mass,
)
from inheritune_lit.errors import UserError


def brute_force(attention_NTT: torch.Tensor, tau: float) -> tuple[list[int], list[int]]:
    """Rank and mass of each matrix by numpy, in fp64, one at a time."""
    ranks, masses = [], []
    for matrix_TT in attention_NTT.double().numpy():
        for energies, found in (
            (np.linalg.svd(matrix_TT, compute_uv=False) ** 2, ranks),
            ((matrix_TT**2).sum(axis=0), masses),
        ):
            shares = np.cumsum(np.sort(energies)[::-1]) / energies.sum()
            found.append(next(k for k, share in enumerate(shares, start=1) if share >= tau - TIE))
    return ranks, masses


@pytest.mark.parametrize("name", closed_forms())
def test_rank_and_mass_of_known_matrices(name):
    matrix_TT, rank, mass = closed_forms()[name]
    assert attention_rank(matrix_TT[None], 0.9).tolist() == [rank]
    assert attention_mass(matrix_TT[None], 0.9).tolist() == [mass]


@pytest.mark.parametrize("tau", [0.5, 0.9, 0.99, 1.0])
@pytest.mark.parametrize("T", [2, 5, 16, 17, 40, 100])
def test_rank_and_mass_of_random_attention_are_those_of_numpy(T, tau):
    attention_NTT = torch.cat([random_attention(24, T, scale) for scale in (0.1, 1, 3, 10)])
    ranks, masses = brute_force(attention_NTT, tau)
    assert attention_rank(attention_NTT, tau).tolist() == ranks
    assert attention_mass(attention_NTT, tau).tolist() == masses


@pytest.mark.parametrize("tau", [0.25, 0.5, 0.75, 0.9])
def test_ties_at_the_threshold_count_as_reaching_it(tau):
    """Block matrices whose equal singular values hold the threshold exactly."""
    attention_NTT = torch.stack([torch.block_diag(*[torch.full((20 // k, 20 // k), k / 20)] * k) for k in (4, 20)])
    assert attention_rank(attention_NTT, tau).tolist() == [-(-tau * 4 // 1), tau * 20]
    assert attention_mass(attention_NTT, tau).tolist() == [tau * 20] * 2


def test_fp32_eigenvalues_stay_within_a_tenth_of_the_margin():
    """What makes the fast ways exact: their shares are near those of fp64."""
    from inheritune_lit.analysis.measures import _MARGIN

    known = torch.stack([matrix_TT for matrix_TT, _, _ in closed_forms().values()])
    attention_NTT = torch.cat([known, *(random_attention(30, 100, scale) for scale in (0.1, 1, 3, 10))])
    shares = []
    for dtype in (torch.float32, torch.float64):
        matrices_NTT = attention_NTT.to(dtype)
        eigenvalues_NT = torch.linalg.eigvalsh(matrices_NTT @ matrices_NTT.mT).flip(-1).clamp(min=0).double()
        shares.append(eigenvalues_NT.cumsum(-1) / eigenvalues_NT.sum(-1, keepdim=True))
    assert (shares[0] - shares[1]).abs().max() < _MARGIN / 10


def test_rank_is_never_above_mass():
    """Schur and Horn: the diagonal of A^T A is majorised by its eigenvalues."""
    attention_NTT = random_attention(60, 50, 2, seed=3)
    assert (attention_rank(attention_NTT, 0.9) <= attention_mass(attention_NTT, 0.9)).all()


def test_entropy_and_sink_of_known_matrices():
    forms = closed_forms()
    uniform_BHTT, sink_BHTT = forms["causal uniform"][0][None, None], forms["pure sink"][0][None, None]
    rows = torch.arange(1, 101, dtype=torch.float64)
    assert entropy(uniform_BHTT).item() == pytest.approx(rows.log().mean().item(), rel=1e-5)
    assert entropy_without_sink(uniform_BHTT).item() == pytest.approx(rows[:-1].log().mean().item(), rel=1e-5)
    assert sink_mass(uniform_BHTT).item() == pytest.approx((1 / rows).mean().item(), rel=1e-5)
    assert (entropy(sink_BHTT).item(), sink_mass(sink_BHTT).item()) == (0, 1)
    assert entropy_without_sink(sink_BHTT).isnan().all()


@pytest.mark.parametrize("tau", [0, -0.1, 1.1, float("nan")])
def test_tau_outside_its_range_is_refused(tau):
    with pytest.raises(UserError, match=r"--tau is .* above 0 and at most 1"):
        AnalyzeArgs("gpt2", "text", "out", tau=tau)


def test_threads_share_the_work_and_leave_torch_as_it_was():
    attention_NTT = random_attention(200, 40, 1)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert attention_rank(attention_NTT, 0.9).tolist() == brute_force(attention_NTT, 0.9)[0]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
