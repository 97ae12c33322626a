"""litgpt's forward pass in steps (embeddings, blocks, final norm, head), and the models of a configuration.

Whoever needs less than ``GPT.forward`` or another attention puts the steps together; each computes what litgpt does.
"""

from collections.abc import Collection
from functools import partial
from typing import Any

import torch
from litgpt.model import GPT, do_softcapping
from torch.utils.checkpoint import checkpoint

from inheritune_lit.checkpoint.config import Config, GPT2Config
from inheritune_lit.model.attention import AttentionPlan

RopeTables = tuple[torch.Tensor, torch.Tensor]  # cosines and sines of the positions, a batch dimension first


def embed(
    model: GPT, tokens_BT: torch.Tensor, positions: torch.Tensor | None = None, rows_BTC: torch.Tensor | None = None
) -> torch.Tensor:
    """What goes into the first block, (B, T, C), of litgpt's model or our GPT-2.

    ``positions`` are those of the tokens in their sequences, (T,) or (B, T), counted from 0 when None; ``rows_BTC``
    the tokens' rows of the embedding, for a model that does not have it in memory.
    """
    x_BTC = model.transformer.wte(tokens_BT) if rows_BTC is None else rows_BTC
    if model.config.scale_embeddings:
        x_BTC = x_BTC * torch.tensor(model.config.n_embd**0.5, dtype=x_BTC.dtype)
    if "wpe" not in model.transformer:
        return x_BTC
    if positions is None:
        positions = torch.arange(tokens_BT.shape[1], device=x_BTC.device)
    return x_BTC + model.transformer.wpe(positions)


def rope_of_layer(model: GPT, rope: RopeTables, layer: int) -> RopeTables:
    """The rotary tables that a layer uses: some models have one for local and one for global attention."""
    indices, (cos, sin) = model.config.rope_indices, rope
    return rope if indices is None else (cos[..., indices[layer]], sin[..., indices[layer]])


def hidden_states(
    model: GPT, tokens_BT: torch.Tensor, positions_BT: torch.Tensor | None = None, plan: AttentionPlan | None = None
) -> torch.Tensor:
    """What goes into the head, (B, T, C).

    Positions of the tokens in their sequences are counted from 0 when None. A plan says what each token attends to, of
    a model after ``install_plans``; all tokens before it when None.
    """
    return states_between(model, tokens_BT, (), positions_BT, plan)[0]


def states_between(
    model: GPT,
    tokens_BT: torch.Tensor,
    keep: Collection[int],
    positions_BT: torch.Tensor | None = None,
    plan: AttentionPlan | None = None,
) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
    """What goes into the head, and what goes into the layers in ``keep`` by their numbers, all (B, T, C).

    Layers are counted from 0; what goes into layer ``n_layer`` is what the last one gives, before the final norm. The
    other arguments are those of ``hidden_states``.
    """
    x_BTC = embed(model, tokens_BT, positions_BT)
    if positions_BT is None:
        rope = model.cos[: x_BTC.shape[1]].unsqueeze(0), model.sin[: x_BTC.shape[1]].unsqueeze(0)
    else:
        rope = model.cos[positions_BT], model.sin[positions_BT]
    kept = {0: x_BTC} if 0 in keep else {}
    for layer, block in enumerate(model.transformer.h):
        x_BTC = block(x_BTC, *rope_of_layer(model, rope, layer), plan)
        if layer + 1 in keep:
            kept[layer + 1] = x_BTC
    return model.transformer.ln_f(x_BTC), kept


def head_logits(model: GPT, hidden: torch.Tensor) -> torch.Tensor:
    """Logits (..., V), fp32, of what ``hidden_states`` gave (..., C)."""
    logits, cap = model.lm_head(hidden), model.config.final_logit_softcapping
    return (logits if cap is None else do_softcapping(logits, cap)).float()


def checkpoint_activations(model: GPT) -> None:
    """Keep only each block's input for the backward pass, which recomputes the rest; names of tensors stay."""
    for block in model.transformer.h:
        # RNG is not used: there is no dropout.
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)


class Transformer(GPT):
    """litgpt's GPT with more entrances: methods, since FSDP gathers parameters where a registered one is called."""

    def hidden_states(self, idx: torch.Tensor) -> torch.Tensor:
        """What goes into the head, (B, T, n_embd), for token ids (B, T)."""
        return hidden_states(self, idx)

    def states_between(self, idx: torch.Tensor, keep: Collection[int]) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
        """As the function of this name, for token ids (B, T)."""
        return states_between(self, idx, keep)


class GPT2(Transformer):
    """litgpt's GPT with learned positions, no rotary ones, and GPT-2's inverse-layer attention scale."""

    config: GPT2Config

    def __init__(self, config: GPT2Config) -> None:
        super().__init__(config)
        self.transformer["wpe"] = torch.nn.Embedding(config.block_size, config.n_embd)
        for layer, block in enumerate(self.transformer.h):
            # litgpt multiplies the attention logits by mscale twice.
            block.attn.mscale = config.attention_divisor(layer) ** -0.5

    def forward(self, idx: torch.Tensor, input_pos: torch.Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """Logits; arguments and results are those of ``GPT.forward``."""
        if input_pos is None and not (args or kwargs):
            return self.lm_head(self.hidden_states(idx))  # what the compiler takes as a whole; hooks it does not
        positions = torch.arange(idx.shape[1], device=idx.device) if input_pos is None else input_pos
        with self.transformer.wte.register_forward_hook(lambda _wte, _ids, x: x + self.transformer.wpe(positions)):
            return super().forward(idx, input_pos, *args, **kwargs)


def build_model(config: Config) -> Transformer:
    """The model of a configuration: ``GPT2`` for ``GPT2Config``, litgpt's ``GPT`` otherwise."""
    return GPT2(config) if isinstance(config, GPT2Config) else Transformer(config)
