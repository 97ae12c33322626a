"""litgpt's forward pass in steps: embeddings, blocks, final norm, head.

Whoever needs less than ``GPT.forward`` or another attention puts these together; each computes what litgpt does.
"""

from collections.abc import Callable
from functools import partial

import torch
from litgpt.model import GPT, do_softcapping
from torch.utils.checkpoint import checkpoint

from inheritune_lit.model.attention import AttentionPlan

RopeTables = tuple[torch.Tensor, torch.Tensor]
"""Cosines and sines of the positions, a batch dimension first."""


def embed(
    model: GPT,
    tokens_BT: torch.Tensor,
    positions: torch.Tensor | None = None,
    rows_of: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> torch.Tensor:
    """What goes into the first block, (B, T, C).

    Args:
        model: litgpt's model or our GPT-2.
        tokens_BT: token ids.
        positions: of each token in its sequence, (T,) or (B, T); counted from 0 when None.
        rows_of: maps ids to rows of the embedding, in place of the model's own.
    """
    x_BTC = (rows_of or model.transformer.wte)(tokens_BT)
    if model.config.scale_embeddings:
        x_BTC = x_BTC * torch.tensor(model.config.n_embd**0.5, dtype=x_BTC.dtype)
    if "wpe" in model.transformer:
        if positions is None:
            positions = torch.arange(tokens_BT.shape[1], device=x_BTC.device)
        x_BTC = x_BTC + model.transformer.wpe(positions)
    return x_BTC


def rope_of_layer(model: GPT, rope: RopeTables, layer: int) -> RopeTables:
    """The rotary tables that a layer uses: some models have one for local and one for global attention."""
    indices = model.config.rope_indices
    if indices is None:
        return rope
    cos, sin = rope
    return cos[..., indices[layer]], sin[..., indices[layer]]


def run_blocks(
    model: GPT,
    x_BTC: torch.Tensor,
    positions_BT: torch.Tensor | None = None,
    plan: AttentionPlan | None = None,
) -> torch.Tensor:
    """What comes out of the last block, (B, T, C).

    Args:
        model: after ``install_plans`` where there is a plan.
        x_BTC: what goes into the first block.
        positions_BT: of each token in its sequence; counted from 0 when None.
        plan: what each token attends to; all tokens before it when None.
    """
    if positions_BT is None:
        rope = model.cos[: x_BTC.shape[1]].unsqueeze(0), model.sin[: x_BTC.shape[1]].unsqueeze(0)
    else:
        rope = model.cos[positions_BT], model.sin[positions_BT]
    for layer, block in enumerate(model.transformer.h):
        x_BTC = block(x_BTC, *rope_of_layer(model, rope, layer), plan)
    return x_BTC


def hidden_states(
    model: GPT,
    tokens_BT: torch.Tensor,
    positions_BT: torch.Tensor | None = None,
    plan: AttentionPlan | None = None,
) -> torch.Tensor:
    """What goes into the head, (B, T, C); arguments as in ``run_blocks``."""
    x_BTC = embed(model, tokens_BT, positions_BT)
    return model.transformer.ln_f(run_blocks(model, x_BTC, positions_BT, plan))


def head_logits(model: GPT, hidden: torch.Tensor) -> torch.Tensor:
    """Logits (..., V), fp32, of what ``hidden_states`` gave (..., C)."""
    logits = model.lm_head(hidden)
    if model.config.final_logit_softcapping is not None:
        logits = do_softcapping(logits, model.config.final_logit_softcapping)
    return logits.float()


def checkpoint_activations(model: GPT) -> None:
    """Keep only each block's input for the backward pass, which recomputes the rest.

    That is a third more computing and a small part of the memory. Names of tensors stay.
    """
    for block in model.transformer.h:
        # RNG is not used: there is no dropout.
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
