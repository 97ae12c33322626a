"""Measures and maps of attention, and of what a layer does to its input; formulas and sources of all measures."""

import math
from dataclasses import dataclass, field

import torch
from litgpt.model import CausalSelfAttention
from torch.nn import functional as F

from inheritune_lit.analysis.args import AnalyzeArgs
from inheritune_lit.analysis.rank import attention_rank, count_to_reach
from inheritune_lit.analysis.result import AttentionMap, MapCollection, Measure
from inheritune_lit.errors import UserError
from inheritune_lit.inherit.layers import parse_layers


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
    """Mean entropy in nats of what the rows pay to others than the first token, scaled to sum to 1, (B, H).

    Rows in which nothing is left after rounding are left out; NaN where that is all of them, or T = 1.
    """
    rest_BHTT = attention_BHTT[..., 1:, 1:]
    sums_BHT = rest_BHTT.sum(dim=-1)
    counts_BHT = sums_BHT > torch.finfo(attention_BHTT.dtype).tiny
    shares_BHTT = rest_BHTT / sums_BHT.where(counts_BHT, torch.ones_like(sums_BHT)).unsqueeze(-1)
    rows_BHT = torch.special.entr(shares_BHTT).sum(dim=-1) * counts_BHT
    return rows_BHT.sum(dim=-1) / counts_BHT.sum(dim=-1)


@dataclass
class HeadMeasures:
    """Collects the measures of a layer's heads from the matrices of its attention, some sequences at a time.

    Args:
        layer: its number, for errors.
        attention: the module, whose weights write what the heads say.
        tau: threshold of rank and mass.
    """

    layer: int
    attention: CausalSelfAttention
    tau: float
    _parts: dict[str, list[torch.Tensor]] = field(default_factory=dict)

    def add(self, attention_BHTT: torch.Tensor, heads_BHTD: torch.Tensor) -> None:
        """Measure some sequences.

        Raises:
            UserError: the attention holds what is not a number.
        """
        if not attention_BHTT.isfinite().all():
            raise UserError(
                f"the attention of layer {self.layer} holds NaN: the checkpoint is damaged, or "
                "its activations overflow; get it again, or look for NaN in its weights"
            )
        B, H, T, _ = attention_BHTT.shape
        attention_NTT = attention_BHTT.reshape(B * H, T, T)
        measured = {
            "attention_rank": attention_rank(attention_NTT, self.tau).view(B, H),
            "attention_mass": attention_mass(attention_NTT, self.tau).view(B, H),
            "entropy": entropy(attention_BHTT),
            "entropy_without_sink": entropy_without_sink(attention_BHTT),
            "sink_mass": sink_mass(attention_BHTT),
            "head_output_norm": head_output_norm(heads_BHTD, self.attention.proj.weight),
        }
        for name, values_BH in measured.items():
            self._parts.setdefault(name, []).append(values_BH.double().cpu())

    def result(self) -> dict[str, torch.Tensor]:
        """Measures of all sequences so far by name, (B, H) each, fp64."""
        return {name: torch.cat(parts) for name, parts in self._parts.items()}


def head_output_norm(heads_BHTD: torch.Tensor, proj_CI: torch.Tensor) -> torch.Tensor:
    """Mean over tokens of the norm of what each head writes into the residual stream, (B, H).

    Kobayashi et al. 2020 (arXiv 2004.10102). Norms are taken through W_O^T W_O of the head, which is small.

    Args:
        heads_BHTD: attention times values.
        proj_CI: W_O of all heads side by side, I = H D.
    """
    H, D = heads_BHTD.shape[1], heads_BHTD.shape[3]
    proj_HCD = proj_CI.view(-1, H, D).transpose(0, 1)
    gram_HDD = proj_HCD.mT @ proj_HCD
    squares_BHT = (heads_BHTD @ gram_HDD * heads_BHTD).sum(dim=-1)
    return squares_BHT.clamp(min=0).sqrt().mean(dim=-1)


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


_MAP_TOKENS, _MAP_STRINGS = 40, 3
_FIGURE_2 = (4 / 24, 7 / 24, 20 / 24, 22 / 24)
"""Where in the depth the layers of the paper's Figure 2 are."""


class MapCollector:
    """Collects attention maps of some heads, as the paper's Figure 2: of the first tokens, mean of the first sequences.

    Args:
        args: which maps.
        layers, heads: how many the model has.

    Raises:
        UserError: maps of layers or heads that the model does not have.
    """

    def __init__(self, args: AnalyzeArgs, layers: int, heads: int) -> None:
        self._kind = args.maps
        self._tokens, self._strings = min(_MAP_TOKENS, args.seq_length), min(_MAP_STRINGS, args.num_sequences)
        if args.map_layers is not None:
            self._layers = set(parse_layers(args.map_layers, layers))
        else:
            self._layers = {int(place * layers) for place in _FIGURE_2}
        self._heads = list(range(heads)) if args.map_heads is None else args.map_heads
        for head in self._heads:
            if not 0 <= head < heads:
                raise UserError(f"--map_heads names head {head}; the model has heads 0 to {heads - 1}")
        self._maps: list[AttentionMap] = []

    def add(self, layer: int, logits_BHTT: torch.Tensor, attention_BHTT: torch.Tensor) -> None:
        """Add maps of a layer if they are wanted.

        Args:
            layer: its number.
            logits_BHTT: of the first sequences, without a mask.
            attention_BHTT: as the model computes it.
        """
        if self._kind == "none" or layer not in self._layers:
            return
        first = slice(self._strings), slice(None), slice(self._tokens), slice(self._tokens)
        if self._kind == "full":
            # The model never sees the tokens that come after; the paper's figure does.
            map_HTT = logits_BHTT[first].softmax(dim=-1).mean(dim=0)
        else:
            map_HTT = attention_BHTT[first].mean(dim=0)
        for head in self._heads:
            weights = [[round(weight, 5) for weight in row] for row in map_HTT[head].tolist()]
            self._maps.append(AttentionMap(layer, head, weights))

    def result(self) -> MapCollection:
        """The maps of all layers so far."""
        if self._kind == "none":
            return MapCollection()
        return MapCollection(self._kind, self._tokens, self._strings, self._maps)


MEASURES: dict[str, Measure] = {
    name: Measure(formula, source, unit)
    for name, formula, source, unit in (
        (
            "attention_rank",
            "k* = min k: the k largest squared singular values of the attention matrix hold a share tau of them all",
            "Sanyal et al. 2024, arXiv 2404.08634v2, Section 2",
            "singular values",
        ),
        (
            "attention_mass",
            "m* = min m: the m heaviest columns hold a share tau of the squared Frobenius norm",
            "Sanyal et al. 2024, arXiv 2404.08634v2, Section 2",
            "columns",
        ),
        ("entropy", "mean over rows of -sum_j a_j ln a_j", "Zhai et al. 2023, arXiv 2303.06296, Section 3", "nats"),
        (
            "entropy_without_sink",
            "entropy of the rows without the first token, scaled to sum to 1",
            "Zhai et al. 2023, arXiv 2303.06296, without the sink of Xiao et al. 2023, arXiv 2309.17453",
            "nats",
        ),
        ("sink_mass", "mean attention to the first token", "Gu et al. 2024, arXiv 2410.10781, Section 3", "share"),
        (
            "head_output_norm",
            "mean over tokens of |W_O A V|_2, for one head",
            "Kobayashi et al. 2020, arXiv 2004.10102",
            "norm",
        ),
        (
            "block_influence",
            "1 - mean over tokens of cos(x_l, x_(l+1))",
            "Men et al. 2024, arXiv 2403.03853, Eq. 1",
            "1 - cosine",
        ),
        ("output_variance", "variance of the entries of x_(l+1)", "Sun et al. 2025, arXiv 2502.05795", "variance"),
        (
            "angular_distance",
            "arccos(cos(x_l, x_(l+n))) / pi, of the last token",
            "Gromov et al. 2024, arXiv 2403.17887, Section 3.1",
            "angle / pi",
        ),
        (
            "logit_lens_loss",
            "cross-entropy of head(norm(x_n)): the first n layers without training",
            "nostalgebraist 2020, the logit lens",
            "nats per token",
        ),
        (
            "drop_loss",
            "cross-entropy with the layers left out",
            "Veit et al. 2016, arXiv 1605.06431, Section 4.1",
            "nats per token",
        ),
        (
            "drop_increase",
            "drop_loss - the loss of the whole model on the same sequences",
            "Veit et al. 2016, arXiv 1605.06431, Section 4.1",
            "nats per token",
        ),
        (
            "grad_norm_q",
            "|dloss/dW_Q|_F, per sequence",
            "Noci et al. 2022, arXiv 2206.03126; arXiv 2404.08634v2, Section 2",
            "norm",
        ),
        (
            "grad_norm_k",
            "|dloss/dW_K|_F, per sequence",
            "Noci et al. 2022, arXiv 2206.03126; arXiv 2404.08634v2, Section 2",
            "norm",
        ),
        (
            "max_rank",
            "v2: mean over sequences of max over heads of k*; v4: max over heads of mean over sequences of k*",
            "arXiv 2404.08634v2, Section 2; arXiv 2404.08634v4",
            "singular values",
        ),
        ("max_mass", "as max_rank, of m*", "arXiv 2404.08634v2, Section 2; arXiv 2404.08634v4", "columns"),
        ("avg_rank", "mean over sequences and heads of k*", "arXiv 2404.08634v4", "singular values"),
        ("avg_mass", "mean over sequences and heads of m*", "arXiv 2404.08634v4", "columns"),
    )
}
