"""Passes through a model of which one layer at a time is in memory, and what they measure."""

from itertools import chain

import torch
from torch import Tensor

from inheritune_lit.analysis.measures import MapCollector, block_influence, measure_heads, output_variance
from inheritune_lit.analysis.stream import Layers, LayerStream, score_subsets
from inheritune_lit.checkpoint.config import Config
from inheritune_lit.errors import UserError
from inheritune_lit.model.attention import capture_attention


def check_capturable(config: Config) -> None:
    """Refuses a model whose attention is not made of matrices of softmax weights, one per head."""
    if config.latent_attention or config.n_layer < 1:
        kind = "latent attention" if config.latent_attention else "no layers"
        remedy = "there are no attention weights to capture; give a model of the LLaMA or GPT-2 kind"
        raise UserError(f"{config.name} has {kind}: {remedy}")


def measure_forward(
    stream: LayerStream, tokens_BT1: Tensor, tau: float, maps: MapCollector
) -> tuple[dict[str, Tensor], Tensor]:
    """Runs a model once on sequences with the token that follows each; ``tau`` is the threshold of rank and mass.

    Returns measures by name, fp64, (B, L, H) of heads, (B, L) of layers, logit_lens_loss (B, L + 1); and the last
    token's activation before each layer and after the last, fp32, (L + 1, B, C).
    """
    targets_BT = tokens_BT1[:, 1:]
    x_BTC = stream.embed(tokens_BT1[:, :-1])
    last, losses = [x_BTC[:, -1].clone()], [stream.losses(x_BTC, targets_BT).cpu()]
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
                chunk["output_variance"] = output_variance(y_bTC)
                chunks.append(chunk)
                x_BTC[rows] = y_bTC
        for name in chunks[0]:
            measured.setdefault(name, []).append(torch.cat([chunk[name].double().cpu() for chunk in chunks]))
        last.append(x_BTC[:, -1].clone())
        losses.append(stream.losses(x_BTC, targets_BT).cpu())
        stream.report(len(x_BTC))
    measured["logit_lens_loss"] = losses
    return {name: torch.stack(values, dim=1) for name, values in measured.items()}, torch.stack(last)


def without_spans(layers: int, longest: int) -> list[list[Layers]]:
    """Returns the layers that stay where a span of a length is left out, by length from 1, then first layer."""
    return [
        [(*range(start), *range(start + length, layers)) for start in range(layers - length + 1)]
        for length in range(1, min(longest, layers) + 1)
    ]


def losses_without_spans(stream: LayerStream, tokens_BT1: Tensor, longest: int) -> dict[int, Tensor]:
    """Returns each sequence's loss where the residual stream bypasses a span of layers, by length, (B, first layers).

    Spans have up to ``longest`` layers; sequences have the token that follows each.
    """
    by_length = without_spans(stream.config.n_layer, longest)
    x_BTC, subsets = stream.embed(tokens_BT1[:, :-1]), list(chain.from_iterable(by_length))
    losses_BS = score_subsets(stream, x_BTC, tokens_BT1[:, 1:], subsets).T
    return dict(enumerate(losses_BS.split([len(each) for each in by_length], dim=1), start=1))
