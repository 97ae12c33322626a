"""Log-likelihoods of many continuations: each shared beginning is computed once, the head where it is needed."""

from typing import TextIO

import numpy as np
import torch
from litgpt.model import GPT

from inheritune_lit.errors import UserError
from inheritune_lit.evaluation.prefix_tree import Row, build_row, split_rows, to_ids, tree_size
from inheritune_lit.evaluation.score_cache import SharedWork, request_key
from inheritune_lit.io.progress import Progress
from inheritune_lit.model.attention import Attend, LayerAttention
from inheritune_lit.model.gpt import head_logits, hidden_states

_QUERIES = {"cpu": 128, "cuda": 512}
"""Queries per block: few waste little on masked keys, many keep a GPU busy."""
_LOGITS = {"cpu": 1 << 24, "cuda": 1 << 27}
"""Logits held at once: bounds the head's memory, whatever the vocabulary."""

Request = tuple[bytes, bytes]
"""Keys (``prefix_tree.to_key``) of the input and of the continuation, of which all but the last id end the input."""
Score = tuple[float, bool]
"""Log-likelihood in nats, and whether the continuation is the greedy choice."""


class TreePlan:
    """One packed row: a node sees its ancestors and itself.

    Queries are taken in blocks. Ancestors of a block's nodes are in the block or are ancestors of its first node (the
    row is in depth-first order), so a block needs only those keys: work and memory are those of separate sequences that
    share a prefix, not of the whole row squared.
    """

    def __init__(self, row: Row, device: torch.device) -> None:
        # On the CPU: blocks are found once per row, and asking a GPU for each would wait for it.
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
            seen = (x[:, :, keys] if isinstance(keys, slice) else x.index_select(2, keys) for x in (k, v))
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


class Scorer:
    """Scores continuations with a model after ``install_plans``.

    ``work`` has scores of earlier processes, and the processes of this run; progress is shown on ``stream``.

    Attributes:
        requests_scored: requests computed, which excludes repeated and cached ones.
        tokens_computed: tokens that went through the network, of all processes.
        tokens_minimum: nodes of the requests' prefix trees, the fewest tokens that could have gone through.
    """

    def __init__(self, model: GPT, max_batch_tokens: int, work: SharedWork, stream: TextIO) -> None:
        self._model, self._max_batch_tokens, self._work, self._stream = model, max_batch_tokens, work, stream
        self._device = model.transformer.wte.weight.device
        self.requests_scored = self.tokens_computed = self.tokens_minimum = 0

    def score(self, requests: list[Request]) -> list[Score]:
        """Scores of the requests, in their order."""
        distinct = list(dict.fromkeys(requests))
        names = [request_key("loglikelihood", *request) for request in distinct]
        # Row: 1 where there is a score, log-likelihood, greedy.
        empty_N3 = torch.zeros(len(distinct), 3, dtype=torch.float64)
        scores_N3 = self._work.find(names, empty_N3, lambda score: [1.0, *score])
        numbers_of: dict[bytes, list[int]] = {}
        for number, (request, there) in enumerate(zip(distinct, scores_N3[:, 0].tolist(), strict=True)):
            if not there:
                numbers_of.setdefault(request[0], []).append(number)

        def rows_of(batch: list[int]) -> torch.Tensor:
            return self._score_row([distinct[number] for number in batch])

        keys = sorted(numbers_of)
        rows = split_rows(keys, self._max_batch_tokens)
        total = sum(map(len, numbers_of.values()))
        self.requests_scored += total
        self.tokens_computed += sum(map(tree_size, rows))
        self.tokens_minimum += tree_size(keys)
        if rows:
            hidden = not self._work.ranks.is_first
            with Progress("score", total, "request", stream=self._stream, hidden=hidden) as progress:
                batches = [[number for key in row for number in numbers_of[key]] for row in rows]
                self._work.compute(batches, names, scores_N3, rows_of, _score_in, progress)
        found = dict(zip(distinct, map(_score_in, scores_N3.tolist()), strict=True))
        return [found[request] for request in requests]

    @torch.inference_mode()
    def _score_row(self, requests: list[Request]) -> torch.Tensor:
        """Rows of the scores of requests, whose keys are sorted and make up one packed row."""
        keys = list(dict.fromkeys(key for key, _ in requests))
        row = build_row(keys)
        tokens_1L, depth_1L = (torch.from_numpy(x).to(self._device)[None] for x in (row.tokens_L, row.depth_L))
        hidden_LC = hidden_states(self._model, tokens_1L, depth_1L, TreePlan(row, self._device))[0]
        path_of = dict(zip(keys, row.paths, strict=True))
        wanted = [(path_of[key], to_ids(continuation)) for key, continuation in requests]
        # M targets, ordered by the N nodes that predict them, of J requests.
        targets_M = np.concatenate([ids for _, ids in wanted])
        nodes_N, owners_M = np.unique(np.concatenate([p[-len(ids) :] for p, ids in wanted]), return_inverse=True)
        # Each target is predicted by one node: were there fewer, every score behind would be another request's.
        assert len(owners_M) == len(targets_M) and all(0 < len(ids) <= len(p) for p, ids in wanted)
        order_M = np.argsort(owners_M, kind="stable")
        logprobs_M, greedy_M = self._score_targets(
            hidden_LC[torch.from_numpy(nodes_N).to(self._device)],
            torch.from_numpy(targets_M[order_M]).to(self._device),
            torch.from_numpy(owners_M[order_M]).to(self._device),
        )
        requests_M = torch.from_numpy(np.repeat(np.arange(len(wanted)), [len(ids) for _, ids in wanted])[order_M])
        sums_J2 = torch.zeros(len(wanted), 2, dtype=torch.float64)
        check_finite(logprobs_M)
        sums_J2.index_add_(0, requests_M, torch.stack([logprobs_M.double(), (~greedy_M).double()], dim=1))
        return torch.stack([torch.ones(len(wanted)), sums_J2[:, 0], sums_J2[:, 1] == 0], dim=1)

    def _score_targets(
        self, hidden_NC: torch.Tensor, targets_M: torch.Tensor, owners_M: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probability (M,) in fp32 of target tokens, and whether each has the highest logit (M,), on the CPU.

        Args:
            hidden_NC: hidden states of distinct positions.
            targets_M: tokens to score.
            owners_M: the position of each target, as an index into ``hidden_NC``, ascending.
        """
        logprobs, greedy = [], []
        rows = max(1, _LOGITS.get(self._device.type, 1 << 27) // self._model.config.padded_vocab_size)
        for first in range(0, len(hidden_NC), rows):
            logits_nV = head_logits(self._model, hidden_NC[first : first + rows])
            bounds = torch.tensor([first, first + len(logits_nV)], device=owners_M.device)
            low, high = torch.searchsorted(owners_M, bounds)
            chosen, own = targets_M[low:high], owners_M[low:high] - first
            logprobs.append((logits_nV[own, chosen] - logits_nV.logsumexp(dim=1)[own]).cpu())
            greedy.append((logits_nV.argmax(dim=1)[own] == chosen).cpu())
        return torch.cat(logprobs), torch.cat(greedy)


def check_finite(values: torch.Tensor) -> None:
    """Refuse what a model with damaged weights computes: argmax would make a choice of NaN."""
    if not bool(values.isfinite().all()):
        kind = "NaN" if bool(values.isnan().any()) else "infinite values"
        raise UserError(f"the model computes {kind}, so it has no scores; train or copy its weights again")


def _score_in(row: list[float]) -> Score:
    return row[1], bool(row[2])
