"""Passes through a model of which one layer at a time is in memory: forward, backward, and what they measure."""

from itertools import chain
from pathlib import Path

import numpy as np
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
    stream: LayerStream, tokens_BT1: Tensor, tau: float, maps: MapCollector, folder: Path | None
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Runs a model once on sequences with the token that follows each.

    ``tau`` is the threshold of rank and mass; a folder gets the input of each layer: together they are too large.

    Returns measures by name, fp64, (B, L, H) of heads, (B, L) of layers, logit_lens_loss (B, L + 1); the last token's
    activation before each layer and after the last, fp32, (L + 1, B, C); the output of the last layer, (B, T, C).
    """
    targets_BT = tokens_BT1[:, 1:]
    x_BTC = stream.embed(tokens_BT1[:, :-1])
    last, losses = [x_BTC[:, -1].clone()], [stream.losses(x_BTC, targets_BT).cpu()]
    measured: dict[str, list[Tensor]] = {}
    for layer in range(stream.config.n_layer):
        if folder is not None:
            np.save(folder / f"{layer}.npy", x_BTC.cpu().numpy())
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
    return {name: torch.stack(values, dim=1) for name, values in measured.items()}, torch.stack(last), x_BTC


def gradient_norms(stream: LayerStream, folder: Path, output_BTC: Tensor, targets_BT: Tensor) -> dict[str, Tensor]:
    """Returns Frobenius norms of the gradients of each sequence's loss with respect to W_Q and W_K, (B, L) each, fp64.

    Vanishing ones mark collapsed attention (Noci et al. 2022, arXiv 2206.03126, as cited in Section 2 of the paper).
    ``folder`` and ``output_BTC`` are those of ``measure_forward``.
    """
    gradient_BTC, config = stream.loss_gradient(output_BTC, targets_BT), stream.config
    # Of the joint projection; values come after queries and keys.
    sizes = config.n_head * config.head_size, config.n_query_groups * config.head_size
    norms = []
    for layer in reversed(range(config.n_layer)):
        stored = np.load(folder / f"{layer}.npy", mmap_mode="r")
        with stream.layer(layer) as (block, run):
            parts = []
            for rows in stream.chunks(len(targets_BT)):
                x_bTC = torch.from_numpy(np.array(stored[rows])).to(stream.device).requires_grad_()
                seen: list[Tensor] = []  # the projection's input and output
                hook = block.attn.qkv.register_forward_hook(lambda _, x, y, seen=seen: seen.extend((*x, y)))
                with hook, torch.enable_grad():
                    y_bTC = run(x_bTC)
                gradient_BTC[rows], of_qkv = torch.autograd.grad(y_bTC, (x_bTC, seen[1]), gradient_BTC[rows])
                parts.append(_weight_gradient_norms(seen[0].detach(), of_qkv, sizes))
            norms.append(torch.cat(parts))
        stream.report(len(targets_BT))
    norms_LB2 = torch.stack(norms[::-1]).cpu()
    return {"grad_norm_q": norms_LB2[..., 0].T, "grad_norm_k": norms_LB2[..., 1].T}


def _weight_gradient_norms(x_bTC: Tensor, gradient_bTO: Tensor, sizes: tuple[int, int]) -> Tensor:
    """Returns norms of X^T G for the first columns of G and for the next ones, (b, 2), fp64.

    |X^T G|_F^2 = sum over pairs of tokens of (x_s . x_t)(g_s . g_t), which needs no matrix of the weights' size.
    """
    x_bTC, gradient_bTO = x_bTC.double(), gradient_bTO.double()
    products_bTT = x_bTC @ x_bTC.mT
    parts = gradient_bTO[..., : sum(sizes)].split(sizes, dim=-1)
    squares = [(products_bTT * (part_bTO @ part_bTO.mT)).sum(dim=(-2, -1)) for part_bTO in parts]
    return torch.stack(squares, dim=-1).clamp(min=0).sqrt()


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
