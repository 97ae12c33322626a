"""What the tokens of a packed prefix tree attend to."""

import torch

from inheritune_lit.evaluation.prefix_tree import Row
from inheritune_lit.model.attention import Attend, LayerAttention

_QUERIES = {"cpu": 128, "cuda": 512}
"""Queries per block: few waste little on masked keys, many keep a GPU busy."""


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
