"""Measures of attention, of what a layer does to its input, and the lazy layers that follow; formulas and sources."""

import math
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch
from litgpt.model import CausalSelfAttention
from torch import Tensor
from torch.nn import functional as F

from inheritune_lit.analysis import result
from inheritune_lit.analysis.args import AnalyzeArgs
from inheritune_lit.errors import UserError
from inheritune_lit.inherit.args import parse_layers, runs_of
from inheritune_lit.io.tables import own_table
from inheritune_lit.model.attention import Captured


def attention_mass(attention_NTT: Tensor, tau: float) -> Tensor:
    """Column mass m*, (N,), int64: the least number of columns that hold a share ``tau`` of the squared Frobenius norm.

    Paper, Section 2. By Schur and Horn m* is never below the rank k* at the same threshold.
    """
    return count_to_reach(attention_NTT.double().square().sum(dim=-2), tau)


def sink_mass(attention_BHTT: Tensor) -> Tensor:
    """Mean attention that the tokens pay to the first one, (B, H) (Gu et al. 2024, arXiv 2410.10781, Section 3)."""
    return attention_BHTT[..., 0].mean(dim=-1)


def entropy(attention_BHTT: Tensor) -> Tensor:
    """Mean entropy of the rows in nats, (B, H) (Zhai et al. 2023, arXiv 2303.06296, Section 3)."""
    return torch.special.entr(attention_BHTT).sum(dim=-1).mean(dim=-1)


def entropy_without_sink(attention_BHTT: Tensor) -> Tensor:
    """Mean entropy in nats of what the rows pay to others than the first token, scaled to sum to 1, (B, H).

    Rows in which nothing is left after rounding are left out; NaN where that is all of them, or T = 1.
    """
    rest_BHTT = attention_BHTT[..., 1:, 1:]
    sums_BHT = rest_BHTT.sum(dim=-1)
    counts_BHT = sums_BHT > torch.finfo(attention_BHTT.dtype).tiny
    shares_BHTT = rest_BHTT / sums_BHT.where(counts_BHT, torch.ones_like(sums_BHT)).unsqueeze(-1)
    rows_BHT = torch.special.entr(shares_BHTT).sum(dim=-1) * counts_BHT
    return rows_BHT.sum(dim=-1) / counts_BHT.sum(dim=-1)


def measure_heads(layer: int, attention: CausalSelfAttention, captured: Captured, tau: float) -> dict[str, Tensor]:
    """Measures of a layer's heads by name, (B, H) each, from the matrices of its attention, which may not hold NaN."""
    _, attention_BHTT, heads_BHTD = captured
    if not attention_BHTT.isfinite().all():
        problem = f"the attention of layer {layer} holds NaN: the checkpoint is damaged, or its activations overflow"
        raise UserError(f"{problem}; get it again, or look for NaN in its weights")
    attention_NTT, heads = attention_BHTT.flatten(0, 1), attention_BHTT.shape[:2]
    return {
        "attention_rank": attention_rank(attention_NTT, tau).view(heads),
        "attention_mass": attention_mass(attention_NTT, tau).view(heads),
        "entropy": entropy(attention_BHTT),
        "entropy_without_sink": entropy_without_sink(attention_BHTT),
        "sink_mass": sink_mass(attention_BHTT),
        "head_output_norm": head_output_norm(heads_BHTD, attention.proj.weight),
    }


def head_output_norm(heads_BHTD: Tensor, proj_CI: Tensor) -> Tensor:
    """Mean norm of what each head writes into the residual stream, (B, H) (Kobayashi et al. 2020, arXiv 2004.10102).

    ``proj_CI`` is W_O of all heads side by side, I = H D; norms are taken through a head's W_O^T W_O, which is small.
    """
    H, D = heads_BHTD.shape[1], heads_BHTD.shape[3]
    proj_HCD = proj_CI.view(-1, H, D).transpose(0, 1)
    squares_BHT = (heads_BHTD @ (proj_HCD.mT @ proj_HCD) * heads_BHTD).sum(dim=-1)
    return squares_BHT.clamp(min=0).sqrt().mean(dim=-1)


def block_influence(before_BTC: Tensor, after_BTC: Tensor) -> Tensor:
    """1 - mean cosine over tokens of a layer's input and output, (B,) (Men et al. 2024, arXiv 2403.03853, Eq. 1)."""
    return 1 - F.cosine_similarity(before_BTC.double(), after_BTC.double(), dim=-1).mean(dim=-1)


def output_variance(after_BTC: Tensor) -> Tensor:
    """Variance of all entries of a layer's output, (B,) (Sun et al. 2025, arXiv 2502.05795)."""
    return after_BTC.double().flatten(1).var(dim=1, correction=0)


def angular_distance(before_BTC: Tensor, after_BTC: Tensor) -> Tensor:
    """Angle over pi between a layer's input and output at the last token, (B,) (Gromov et al. 2024, arXiv 2403.17887,
    Section 3.1)."""
    cosine_B = F.cosine_similarity(before_BTC[:, -1].double(), after_BTC[:, -1].double(), dim=-1)
    return cosine_B.clamp(-1, 1).arccos() / math.pi


_MAP_TOKENS, _MAP_STRINGS = 40, 3
_FIGURE_2 = (4 / 24, 7 / 24, 20 / 24, 22 / 24)  # where in the depth the layers of the paper's Figure 2 are


class MapCollector:
    """Collects attention maps of some layers and heads, as the paper's Figure 2: of the first tokens and sequences."""

    def __init__(self, args: AnalyzeArgs, layers: int, heads: int) -> None:
        tokens, strings = min(_MAP_TOKENS, args.seq_length), min(_MAP_STRINGS, args.num_sequences)
        self.result = result.MapCollection()
        if args.maps != "none":
            self.result = result.MapCollection(args.maps, tokens, strings)
        scaled = [int(place * layers) for place in _FIGURE_2]
        self._layers = scaled if args.map_layers is None else parse_layers(args.map_layers, layers)
        self._heads = list(range(heads)) if args.map_heads is None else args.map_heads
        if wrong := [head for head in self._heads if not 0 <= head < heads]:
            raise UserError(f"--map_heads names head {wrong[0]}; the model has heads 0 to {heads - 1}")

    def add(self, layer: int, captured: Captured) -> None:
        """Adds maps of a layer if they are wanted, from the attention of the first sequences."""
        maps = self.result
        if maps.kind == "none" or layer not in self._layers:
            return
        # The model never sees the tokens that come after; the paper's figure does.
        full = maps.kind == "full"
        matrices_BHTT = captured.logits_BHTT if full else captured.attention_BHTT
        matrices_BHTT = matrices_BHTT[: maps.strings, :, : maps.tokens, : maps.tokens]
        map_HTT = (matrices_BHTT.softmax(dim=-1) if full else matrices_BHTT).mean(dim=0)
        for head in self._heads:
            weights = [[round(weight, 5) for weight in row] for row in map_HTT[head].tolist()]
            maps.attention.append(result.AttentionMap(layer, head, weights))


MEASURES = {row.pop("name"): result.Measure(**row) for row in own_table(__file__)}
TIE = 1e-9  # a share so far below the threshold reaches it: 90 ones of 100 are 90%, however they are summed
_CHUNK = 64
_MARGIN = 3e-5  # what shares in fp32 must be clear of; a test shows that their rounding is less than a tenth of it


def count_to_reach(energies_NT: Tensor, tau: float) -> Tensor:
    """Returns how many of the largest energies, fp64 squares in any order, hold a share ``tau`` of all, (N,), int64."""
    running_NT = energies_NT.sort(dim=-1, descending=True).values.cumsum(dim=-1)
    return (running_NT < (tau - TIE) * running_NT[:, -1:]).sum(dim=-1) + 1


def attention_rank(attention_NTT: Tensor, tau: float) -> Tensor:
    """Returns the approximate rank k* of each fp32 matrix, (N,), int64, on the CPU.

    The least k such that the k largest squared singular values hold a share ``tau`` of them all (paper, Section 2,
    tau = 0.9). Squared singular values of A are the eigenvalues of A A^T: in fp32, and where rounding could decide, in
    fp64. The integers are those of a full SVD.
    """
    attention_NTT = attention_NTT.detach().cpu()
    chunks = attention_NTT.split(_CHUNK)
    threads = min(torch.get_num_threads(), len(chunks))
    if threads <= 1:
        return torch.cat([_rank(chunk, tau) for chunk in chunks])
    # LAPACK goes through a batch one matrix after the other, on one core.
    with ThreadPoolExecutor(threads, initializer=partial(torch.set_num_threads, 1)) as pool:
        return torch.cat(list(pool.map(partial(_rank, tau=tau), chunks)))


def _rank(attention_NTT: Tensor, tau: float) -> Tensor:
    rank_N = torch.zeros(len(attention_NTT), dtype=torch.int64)
    energies_NT = attention_NTT.square().sum(dim=-2)
    # The first squared singular value is at least that of any column.
    rank_N[energies_NT.amax(dim=-1) > (tau + _MARGIN) * energies_NT.sum(dim=-1)] = 1
    for dtype in (torch.float32, torch.float64):
        if len(open_M := (rank_N == 0).nonzero().squeeze(1)):
            open_MTT = attention_NTT[open_M].to(dtype)
            energies_MT = torch.linalg.eigvalsh(open_MTT @ open_MTT.mT).clamp(min=0).double()
            rank_M = count_to_reach(energies_MT, tau)
            # The error of fp64 is about 1e-14 of the largest, so a share is wrong by 1e-12 at most: a thousandth of
            # TIE. In fp32 rounding may decide near the threshold.
            if dtype == torch.float32:
                shares_MT = energies_MT.flip(-1).cumsum(dim=-1) / energies_MT.sum(dim=-1, keepdim=True)
                rank_M[((shares_MT - tau).abs() < _MARGIN).any(dim=-1)] = 0
            rank_N[open_M] = rank_M
    return rank_N


def mean_and_std(values_B: Tensor) -> dict[str, list]:
    """Returns mean and sample standard deviation over the first dimension as lists; the deviation of one is 0."""
    std = values_B.std(dim=0) if len(values_B) > 1 else torch.zeros_like(values_B[0])
    return {"mean": values_B.mean(dim=0).tolist(), "std": std.tolist()}


def both_protocols(rank_BLH: Tensor, mass_BLH: Tensor) -> result.Protocols:
    """Returns rank and mass of layers by both versions of the paper, from those of each sequence and head."""
    largest = [result.ByLayer(**mean_and_std(each_BLH.amax(dim=-1))) for each_BLH in (rank_BLH, mass_BLH)]
    both_LH = rank_BLH.mean(dim=0), mass_BLH.mean(dim=0)
    max_of_means = [each_LH.amax(dim=-1).tolist() for each_LH in both_LH]
    mean_of_means = [each_LH.mean(dim=-1).tolist() for each_LH in both_LH]
    return result.Protocols(v2=result.ProtocolV2(*largest), v4=result.ProtocolV4(*max_of_means, *mean_of_means))


def lazy_layers(protocols: result.Protocols, protocol: str) -> result.LazyLayers:
    """Returns lazy layers, where MaxRank, rounded down, is 1, and lazy groups by one version of the paper.

    Groups are for version 4 the runs of layers where AvgRank, rounded down, is 1, for version 2 those of lazy layers.
    """
    v2, v4 = protocols.v2.max_rank.mean, protocols.v4
    max_rank, grouped = (v2, v2) if protocol == "v2" else (v4.max_rank, v4.avg_rank)
    layers = [layer for layer, rank in enumerate(max_rank) if int(rank) == 1]
    groups = runs_of(layer for layer, rank in enumerate(grouped) if int(rank) == 1)
    return result.LazyLayers(layers, groups, layers[0] if layers else None)
