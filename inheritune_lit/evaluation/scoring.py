"""Log-likelihoods of many continuations: each shared beginning is computed once, the head where it is needed."""

from collections.abc import Iterator
from typing import TextIO

import numpy as np
import torch
from litgpt.model import GPT

from inheritune_lit.evaluation.prefix_tree import Row, build_row, shared_lengths, split_rows, to_ids, tree_size
from inheritune_lit.evaluation.ranks import Ranks
from inheritune_lit.evaluation.score_cache import ScoreCache, request_key
from inheritune_lit.io.progress import Progress
from inheritune_lit.model.attention import Attend, LayerAttention
from inheritune_lit.model.forward import head_logits, hidden_states

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


_LOGITS = {"cpu": 1 << 24, "cuda": 1 << 27}
"""Logits held at once: bounds the head's memory, whatever the vocabulary."""


def score_targets(
    model: GPT, hidden_NC: torch.Tensor, targets: torch.Tensor, owners: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability of target tokens, and whether each has the highest logit.

    Args:
        model: whose head to use; its log-softmax is in fp32.
        hidden_NC: hidden states of distinct positions.
        targets: (M,) tokens to score.
        owners: (M,) the position of each target, as an index into ``hidden_NC``, ascending.

    Returns:
        Log-probabilities (M,) in fp32 and flags (M,), on the CPU.
    """
    logprobs, greedy = [], []
    for first, logits_nV in _chunks(model, hidden_NC):
        low, high = torch.searchsorted(owners, torch.tensor([first, first + len(logits_nV)], device=owners.device))
        chosen, rows = targets[low:high], owners[low:high] - first
        normaliser_n = logits_nV.logsumexp(dim=1)
        logprobs.append((logits_nV[rows, chosen] - normaliser_n[rows]).cpu())
        greedy.append((logits_nV.argmax(dim=1)[rows] == chosen).cpu())
    return torch.cat(logprobs), torch.cat(greedy)


def _chunks(model: GPT, hidden_NC: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
    rows = max(1, _LOGITS.get(hidden_NC.device.type, 1 << 27) // model.config.padded_vocab_size)
    for first in range(0, len(hidden_NC), rows):
        yield first, head_logits(model, hidden_NC[first : first + rows])


Request = tuple[bytes, bytes]
"""Keys (``prefix_tree.to_key``) of the input and of the continuation, of which all but the last id end the input."""
Score = tuple[float, bool]
"""Log-likelihood in nats, and whether the continuation is the greedy choice."""


class Scorer:
    """Scores continuations.

    Args:
        model: after ``install_plans``.
        max_batch_tokens: tokens per forward pass.
        cache: results of earlier processes.
        ranks: processes that share the work.
        stream: where progress is shown.

    Attributes:
        requests_scored: requests computed, which excludes repeated and cached ones.
        tokens_computed: tokens that went through the network, of all processes.
        tokens_minimum: nodes of the requests' prefix trees, the fewest tokens that could have gone through.
    """

    def __init__(self, model: GPT, max_batch_tokens: int, cache: ScoreCache, ranks: Ranks, stream: TextIO) -> None:
        self._model, self._max_batch_tokens = model, max_batch_tokens
        self._cache, self._ranks, self._stream = cache, ranks, stream
        self._device = model.transformer.wte.weight.device
        self.requests_scored = self.tokens_computed = self.tokens_minimum = 0

    def score(self, requests: list[Request]) -> list[Score]:
        """Scores of the requests, in their order."""
        distinct = list(dict.fromkeys(requests))
        scores = self._cached(distinct)
        requests_of: dict[bytes, list[Request]] = {}
        for request in distinct:
            if request not in scores:
                requests_of.setdefault(request[0], []).append(request)
        keys = sorted(requests_of)
        shared = shared_lengths(keys)
        rows = [keys[row.start : row.stop] for row in split_rows(keys, shared, self._max_batch_tokens)]
        self.requests_scored += len(distinct) - len(scores)
        self.tokens_minimum += tree_size(keys, shared)
        if rows:
            self._score_rows(rows, requests_of, scores)
        return [scores[request] for request in requests]

    def _score_rows(
        self, rows: list[list[bytes]], requests_of: dict[bytes, list[Request]], scores: dict[Request, Score]
    ) -> None:
        """Add the scores of rows; each process does one row at a time."""
        rank, world = self._ranks.rank, self._ranks.world
        total = sum(map(len, requests_of.values()))
        with Progress("score", total, "request", stream=self._stream, hidden=rank > 0) as progress:
            for first in range(0, len(rows), world):
                now = rows[first : first + world]
                requests = [[request for key in row for request in requests_of[key]] for row in now]
                own = [
                    self._score_row(row, requests_of)
                    if number == rank
                    else torch.zeros(len(requests[number]), 2).double()
                    for number, row in enumerate(now)
                ]
                self.tokens_computed += sum(tree_size(row, shared_lengths(row)) for row in now)
                made = _as_scores(
                    [request for part in requests for request in part], self._ranks.add_up(torch.cat(own))
                )
                self._cache.add({_name(request): score for request, score in made.items()})
                scores |= made
                progress.update(len(made))

    def _cached(self, requests: list[Request]) -> dict[Request, Score]:
        """Scores that are on disk, as the first process sees them: the file may be growing."""
        found = [self._cache.get(_name(request)) if self._ranks.rank == 0 else None for request in requests]
        is_there = torch.tensor([score is not None for score in found], dtype=torch.float64)
        values = torch.tensor([score or (0.0, False) for score in found], dtype=torch.float64).reshape(-1, 2)
        is_there, values = self._ranks.add_up(is_there).bool(), self._ranks.add_up(values)
        there = [request for request, flag in zip(requests, is_there.tolist(), strict=True) if flag]
        return _as_scores(there, values[is_there])

    @torch.inference_mode()
    def _score_row(self, keys: list[bytes], requests_of: dict[bytes, list[Request]]) -> torch.Tensor:
        """Scores of every request of a row, (requests, 2)."""
        row = build_row(keys)
        tokens_1L, depth_1L = (torch.from_numpy(x).to(self._device)[None] for x in (row.tokens_L, row.depth_L))
        hidden_LC = hidden_states(self._model, tokens_1L, depth_1L, TreePlan(row, self._device))[0]
        wanted = [
            (path, to_ids(continuation))
            for path, key in zip(row.paths, keys, strict=True)
            for _, continuation in requests_of[key]
        ]
        # M targets, ordered by the N nodes that predict them, of J requests.
        nodes_N, owners_M = np.unique(np.concatenate([p[-len(ids) :] for p, ids in wanted]), return_inverse=True)
        order_M = np.argsort(owners_M, kind="stable")
        logprobs_M, greedy_M = score_targets(
            self._model,
            hidden_LC[torch.from_numpy(nodes_N).to(self._device)],
            torch.from_numpy(np.concatenate([ids for _, ids in wanted])[order_M]).to(self._device),
            torch.from_numpy(owners_M[order_M]).to(self._device),
        )
        requests_M = torch.from_numpy(np.repeat(np.arange(len(wanted)), [len(ids) for _, ids in wanted])[order_M])
        sums_J2 = torch.zeros(len(wanted), 2, dtype=torch.float64)
        sums_J2.index_add_(0, requests_M, torch.stack([logprobs_M.double(), (~greedy_M).double()], dim=1))
        sums_J2[:, 1] = (sums_J2[:, 1] == 0).double()
        return sums_J2


def _name(request: Request) -> str:
    return request_key("loglikelihood", *request)


def _as_scores(requests: list[Request], values_J2: torch.Tensor) -> dict[Request, Score]:
    return {
        request: (loglikelihood, bool(greedy))
        for request, (loglikelihood, greedy) in zip(requests, values_J2.tolist(), strict=True)
    }
