"""Passes through a model of which one layer at a time is in memory, and what they measure."""

import torch
from torch import Tensor

from inheritune_lit.analysis.measures import (
    MapCollector,
    angular_distance,
    block_influence,
    measure_heads,
    output_variance,
)
from inheritune_lit.analysis.stream import Layers, LayerStream, score_subsets
from inheritune_lit.model.attention import capture_attention


def measure_forward(stream: LayerStream, tokens_BT1: Tensor, tau: float, maps: MapCollector) -> dict[str, Tensor]:
    """Runs a model once on sequences with the token that follows each; ``tau`` is the threshold of rank and mass.

    Returns measures by name, fp64: (B, L, H) of heads, (B, L) of layers, logit_lens_loss (B, L + 1).
    """
    targets_BT = tokens_BT1[:, 1:]
    x_BTC = stream.embed(tokens_BT1[:, :-1])
    losses = [stream.losses(x_BTC, targets_BT).cpu()]
    measured: dict[str, list[Tensor]] = {}
    for layer in range(stream.config.n_layer):
        chunks: list[dict[str, Tensor]] = []
        with stream.layer(layer) as (block, run):
            for rows in stream.chunks(len(x_BTC)):
                with capture_attention(block.attn) as calls:
                    y_bTC = run(x_BTC[rows])
                [captured] = calls
                if rows.start == 0:
                    maps.add(layer, captured)
                chunk = measure_heads(layer, block.attn, captured, tau)
                chunk["block_influence"] = block_influence(x_BTC[rows], y_bTC)
                chunk["angular_distance"] = angular_distance(x_BTC[rows], y_bTC)
                chunk["output_variance"] = output_variance(y_bTC)
                chunks.append(chunk)
                x_BTC[rows] = y_bTC
        for name in chunks[0]:
            measured.setdefault(name, []).append(torch.cat([chunk[name].double().cpu() for chunk in chunks]))
        losses.append(stream.losses(x_BTC, targets_BT).cpu())
        stream.report(len(x_BTC))
    measured["logit_lens_loss"] = losses
    return {name: torch.stack(values, dim=1) for name, values in measured.items()}


def all_but_one(layers: int) -> list[Layers]:
    """Returns the layers that stay where one is left out, by that one."""
    return [(*range(layer), *range(layer + 1, layers)) for layer in range(layers)]


def losses_without_layers(stream: LayerStream, tokens_BT1: Tensor) -> Tensor:
    """Returns each sequence's loss where the residual stream bypasses a layer, (B, L), fp64, on the CPU.

    Sequences have the token that follows each.
    """
    x_BTC, subsets = stream.embed(tokens_BT1[:, :-1]), all_but_one(stream.config.n_layer)
    return score_subsets(stream, x_BTC, tokens_BT1[:, 1:], subsets).T
