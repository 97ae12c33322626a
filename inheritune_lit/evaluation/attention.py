"""What the blocks of litgpt attend to, when a forward pass says so in place of a mask.

litgpt hands a mask unchanged to the method that computes attention. The forward passes of evaluation hand over an
``AttentionPlan`` instead, which calls that method with the keys and the mask that it wants.
"""

from collections.abc import Callable
from functools import partial
from typing import Protocol

import torch
from litgpt.model import GPT

from inheritune_lit.evaluation.prefix_tree import Row

Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]
"""litgpt's method: q (B, H, T, D), k and v (B, H, S, D), mask; result (B, T, H, D)."""

_QUERIES = {"cpu": 128, "cuda": 512}
"""Queries a block: few waste little on masked keys, many keep a GPU busy."""


class AttentionPlan(Protocol):
    """Decides which keys each query of a forward pass sees."""

    def attend(
        self, attend: Attend, layer: "LayerAttention", q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> torch.Tensor:
        """Attention of one layer; ``q``, ``k``, ``v`` are (B, H, T, D), the result is (B, T, H, D)."""


class LayerAttention:
    """How one layer attends.

    Attributes:
        number: the layer.
        window: positions back that it sees, itself included; None for all.
        capped: whether logits are soft-capped, which litgpt combines with additive masks only.
    """

    def __init__(self, number: int, window: int | None, capped: bool) -> None:
        self.number, self.window, self.capped = number, window, capped

    def mask(self, visible: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """The mask that litgpt's method wants, of what is visible (bool)."""
        if not self.capped:
            return visible
        return torch.zeros(visible.shape, dtype=like.dtype, device=like.device).masked_fill_(~visible, float("-inf"))


def install_plans(model: GPT) -> None:
    """Let the model's blocks take an ``AttentionPlan`` where a mask goes. Plain forward passes stay what they were."""
    config = model.config
    for number, block in enumerate(model.transformer.h):
        attention = block.attn
        # litgpt would replace the plan by a mask of its own, which it fills in a loop over positions.
        windowed = getattr(attention, "apply_sliding_window_attention", False)
        attention.apply_sliding_window_attention = False
        window = config.sliding_window_size if windowed else None
        layer = LayerAttention(number, window, config.attention_logit_softcapping is not None)
        attention.scaled_dot_product_attention = partial(_planned, attention.scaled_dot_product_attention, layer)


def _planned(
    attend: Attend,
    layer: LayerAttention,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: "torch.Tensor | AttentionPlan | None" = None,
) -> torch.Tensor:
    if mask is None and layer.window is not None:
        mask = CausalPlan()
    if mask is None or isinstance(mask, torch.Tensor):
        return attend(q, k, v, mask)
    return mask.attend(attend, layer, q, k, v)


class CausalPlan:
    """Plain sequences from position 0."""

    def attend(
        self, attend: Attend, layer: LayerAttention, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> torch.Tensor:
        T = q.shape[2]
        if layer.window is None or layer.window >= T:
            return attend(q, k, v, None)
        distance_TT = torch.arange(T, device=q.device)[:, None] - torch.arange(T, device=q.device)
        visible_TT = (distance_TT >= 0) & (distance_TT < layer.window)
        return attend(q, k, v, layer.mask(visible_TT, q))


class TreePlan:
    """One packed row: a node sees its ancestors and itself.

    Queries are taken in blocks. Ancestors of a block's nodes are in the block or are ancestors of its first node (the
    row is in depth-first order), so a block needs only those keys: work and memory are those of separate sequences that
    share a prefix, not of the whole row squared.

    Args:
        row: the packed row.
        device: of the model.
    """

    def __init__(self, row: Row, device: torch.device) -> None:
        # On the CPU: blocks are found once a row, and asking a GPU for each would wait for it.
        self._depth_L, self._end_L = torch.from_numpy(row.depth_L), torch.from_numpy(row.end_L)
        self._is_chain = len(row.paths) == 1
        self._queries = _QUERIES.get(device.type, 512)
        self._blocks: dict[int | None, list[tuple[slice, slice | torch.Tensor, torch.Tensor]]] = {}

    def attend(
        self, attend: Attend, layer: LayerAttention, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> torch.Tensor:
        if self._is_chain and (layer.window is None or layer.window >= len(self._depth_L)):
            return attend(q, k, v, None)
        if layer.window not in self._blocks:
            starts = range(0, len(self._depth_L), self._queries)
            self._blocks[layer.window] = [self._block(start, layer, q) for start in starts]
        parts = []
        for queries, keys, mask in self._blocks[layer.window]:
            if isinstance(keys, slice):
                seen = k[:, :, keys], v[:, :, keys]
            else:
                seen = k.index_select(2, keys), v.index_select(2, keys)
            parts.append(attend(q[:, :, queries], *seen, mask))
        return torch.cat(parts, dim=1)

    def _block(
        self, start: int, layer: LayerAttention, like: torch.Tensor
    ) -> tuple[slice, slice | torch.Tensor, torch.Tensor]:
        """Queries, keys and mask of the block that begins at ``start``."""
        stop = min(start + self._queries, len(self._depth_L))
        queries_Q = torch.arange(start, stop)
        ancestors = torch.nonzero(self._end_L[:start] > start)[:, 0]
        keys_K = torch.cat([ancestors, queries_Q])
        visible_QK = (keys_K <= queries_Q[:, None]) & (queries_Q[:, None] < self._end_L[keys_K])
        if layer.window is not None:
            visible_QK &= self._depth_L[queries_Q][:, None] - self._depth_L[keys_K] < layer.window
            seen_K = visible_QK.any(dim=0)
            keys_K, visible_QK = keys_K[seen_K], visible_QK[:, seen_K]
        first, last = int(keys_K[0]), int(keys_K[-1])
        keys = slice(first, last + 1) if last - first == len(keys_K) - 1 else keys_K.to(like.device)
        return slice(start, stop), keys, layer.mask(visible_QK.to(like.device), like)
