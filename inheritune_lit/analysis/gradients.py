"""Gradients of queries' and keys' weights, one layer in memory at a time."""

from collections.abc import Callable

import torch

from inheritune_lit.analysis.stream import LayerStream, StateStore


def gradient_norms(
    stream: LayerStream,
    inputs: StateStore,
    output_BTC: torch.Tensor,
    targets_BT: torch.Tensor,
    report: Callable[[], None],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Frobenius norms of the gradients of each sequence's loss with respect to W_Q and W_K, (B, L) each, fp64.

    Vanishing ones mark collapsed attention (Noci et al. 2022, arXiv 2206.03126, as cited in Section 2 of the paper).

    Args:
        stream: the model.
        inputs: what goes into layer l, under the name "l".
        output_BTC: what comes out of the last layer.
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
    return norms_LB2[..., 0].T, norms_LB2[..., 1].T


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
