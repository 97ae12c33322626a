"""Passes through a model layer by layer: forward for most measures, backward for gradients, and without some layers."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from inheritune_lit.analysis.attention_stats import (
    HeadMeasures,
    MapCollector,
    block_influence,
    output_variance,
)
from inheritune_lit.analysis.stream import ActivationStore, LayerStream
from inheritune_lit.model.attention import capture_attention


@dataclass
class ForwardMeasures:
    """What a forward pass measured; B sequences, L layers, H heads, fp64.

    Attributes:
        heads: by measure, (B, L, H).
        layers: by measure, (B, L); logit_lens_loss (B, L + 1).
        last_LBC: the last token's activation before each layer and after the last, fp32, L + 1 of them.
        output_BTC: output of the last layer.
    """

    heads: dict[str, torch.Tensor]
    layers: dict[str, torch.Tensor]
    last_LBC: torch.Tensor
    output_BTC: torch.Tensor


def measure_forward(
    stream: LayerStream,
    tokens_BT1: torch.Tensor,
    tau: float,
    maps: MapCollector,
    inputs: ActivationStore | None,
    report: Callable[[], None],
) -> ForwardMeasures:
    """Run a model once on sequences.

    Args:
        stream: the model.
        tokens_BT1: sequences with the token that follows each.
        tau: threshold of rank and mass.
        maps: collects attention maps.
        inputs: keeps the input of layer l under the name "l", where given.
        report: called after each layer.

    Raises:
        UserError: the attention holds NaN.
    """
    targets_BT = tokens_BT1[:, 1:]
    x_BTC = stream.embed(tokens_BT1[:, :-1])
    last, losses = [x_BTC[:, -1].clone()], [stream.losses(x_BTC, targets_BT).cpu()]
    heads: list[dict[str, torch.Tensor]] = []
    layers: dict[str, list[torch.Tensor]] = {"block_influence": [], "output_variance": []}
    for layer in range(stream.config.n_layer):
        if inputs is not None:
            inputs.put(str(layer), x_BTC)
        influences, variances = [], []
        with stream.layer(layer) as (block, run):
            measures = HeadMeasures(layer, block.attn, tau)
            for rows in stream.chunks(len(x_BTC)):

                def receive(logits_BHTT, attention_BHTT, heads_BHTD, rows=rows, measures=measures, layer=layer):
                    measures.add(attention_BHTT, heads_BHTD)
                    if rows.start == 0:
                        maps.add(layer, logits_BHTT, attention_BHTT)

                with capture_attention(block.attn, receive):
                    y_bTC = run(x_BTC[rows])
                influences.append(block_influence(x_BTC[rows], y_bTC).cpu())
                variances.append(output_variance(y_bTC).cpu())
                x_BTC[rows] = y_bTC
        heads.append(measures.result())
        layers["block_influence"].append(torch.cat(influences))
        layers["output_variance"].append(torch.cat(variances))
        last.append(x_BTC[:, -1].clone())
        losses.append(stream.losses(x_BTC, targets_BT).cpu())
        report()
    return ForwardMeasures(
        {name: torch.stack([measured[name] for measured in heads], dim=1) for name in heads[0]},
        {name: torch.stack(values, dim=1) for name, values in (layers | {"logit_lens_loss": losses}).items()},
        torch.stack(last),
        x_BTC,
    )


def gradient_norms(
    stream: LayerStream,
    inputs: ActivationStore,
    output_BTC: torch.Tensor,
    targets_BT: torch.Tensor,
    report: Callable[[], None],
) -> dict[str, torch.Tensor]:
    """Frobenius norms of the gradients of each sequence's loss with respect to W_Q and W_K, (B, L) each, fp64.

    Vanishing ones mark collapsed attention (Noci et al. 2022, arXiv 2206.03126, as cited in Section 2 of the paper).

    Args:
        stream: the model.
        inputs: inputs of the layers.
        output_BTC: output of the last layer.
        targets_BT: the tokens that follow.
        report: called after each layer.
    """
    gradient_BTC = stream.loss_gradient(output_BTC, targets_BT)
    norms = []
    for layer in reversed(range(stream.config.n_layer)):
        with stream.layer(layer) as (block, run):
            parts = []
            for rows in stream.chunks(len(targets_BT)):
                x_bTC = inputs.get(str(layer), rows.start, rows.stop).to(stream.device).requires_grad_()
                seen: dict[str, torch.Tensor] = {}
                hook = block.attn.qkv.register_forward_hook(
                    lambda module, args, output, seen=seen: seen.update(input=args[0], output=output)
                )
                with hook, torch.enable_grad():
                    y_bTC = run(x_bTC)
                wanted = (x_bTC, seen["output"])
                gradient_BTC[rows], qkv_bTO = torch.autograd.grad(y_bTC, wanted, gradient_BTC[rows])
                parts.append(_weight_gradient_norms(seen["input"].detach(), qkv_bTO, stream.query_and_key_sizes))
            norms.append(torch.cat(parts))
        report()
    norms_LB2 = torch.stack(norms[::-1]).cpu()
    return {"grad_norm_q": norms_LB2[..., 0].T, "grad_norm_k": norms_LB2[..., 1].T}


def _weight_gradient_norms(x_bTC: torch.Tensor, gradient_bTO: torch.Tensor, sizes: tuple[int, int]) -> torch.Tensor:
    """Norms of X^T G for the first columns of G and for the next ones, (b, 2), fp64.

    |X^T G|_F^2 = sum over pairs of tokens of (x_s . x_t)(g_s . g_t), which needs no matrix of the weights' size.
    """
    x_bTC, gradient_bTO = x_bTC.double(), gradient_bTO.double()
    products_bTT = x_bTC @ x_bTC.mT
    norms = []
    for part_bTO in gradient_bTO[..., : sum(sizes)].split(sizes, dim=-1):
        squares_b = (products_bTT * (part_bTO @ part_bTO.mT)).sum(dim=(-2, -1))
        norms.append(squares_b.clamp(min=0).sqrt())
    return torch.stack(norms, dim=-1)


def spans(layers: int, longest: int) -> list[tuple[int, int]]:
    """First layer and length of every span up to a length."""
    return [(start, length) for length in range(1, min(longest, layers) + 1) for start in range(layers - length + 1)]


def layer_runs(layers: int, longest: int) -> int:
    """How many times a layer is run for ``losses_without_layers``."""
    return sum(layers - start - length for start, length in spans(layers, longest))


def losses_without_layers(
    stream: LayerStream,
    inputs: ActivationStore,
    scratch: ActivationStore,
    targets_BT: torch.Tensor,
    longest: int,
    report: Callable[[], None],
) -> dict[int, torch.Tensor]:
    """Loss of each sequence where the residual stream bypasses a span of layers, by length, (B, first layers).

    Args:
        stream: the model.
        inputs: inputs of the layers.
        scratch: for activations on their way.
        targets_BT: the tokens that follow; their number says how many sequences are used.
        longest: length of the longest spans.
        report: called after each run of a layer.
    """
    layers, B = stream.config.n_layer, len(targets_BT)
    every = spans(layers, longest)

    def activation(start: int, length: int, layer: int) -> torch.Tensor:
        """Input of a layer after a span that was bypassed."""
        fresh = start + length == layer
        return (inputs.get(str(start), 0, B) if fresh else scratch.get(f"{start}-{length}")).to(stream.device)

    for layer in range(layers):
        with stream.layer(layer) as (_, run):
            for start, length in every:
                if start + length <= layer:
                    scratch.put(f"{start}-{length}", stream.in_chunks(run, activation(start, length, layer)))
                    report()
    losses: dict[int, list[torch.Tensor]] = {}
    for start, length in every:
        losses.setdefault(length, []).append(stream.losses(activation(start, length, layers), targets_BT).cpu())
    return {length: torch.stack(parts, dim=1) for length, parts in losses.items()}
