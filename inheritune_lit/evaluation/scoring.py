"""Log-likelihoods of many continuations: each shared beginning is computed once, the head where it is needed.

Sequences sorted by their ids are a depth-first walk through their prefix tree. A row of the walk lists the tree's nodes
in that order, so the nodes below a node stand directly behind it, and where they end says who may attend to it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TextIO

import numpy as np
import torch
from litgpt.model import GPT
from torch import Tensor

from inheritune_lit.errors import UserError
from inheritune_lit.evaluation.score_cache import SharedWork, request_key
from inheritune_lit.io.progress import Progress
from inheritune_lit.model.attention import Attend, LayerAttention
from inheritune_lit.model.gpt import head_logits, hidden_states

_QUERIES = {"cpu": 128, "cuda": 512}  # queries per block: few waste little on masked keys, many keep a GPU busy
_LOGITS = {"cpu": 1 << 24, "cuda": 1 << 27}  # logits held at once: bounds the head's memory, whatever the vocabulary

Request = tuple[bytes, bytes]  # keys of the input and of the continuation, of which all but the last id end the input
Score = tuple[float, bool]  # log-likelihood in nats, and whether the continuation is the greedy choice
# Big-endian ids sort as bytes the way they sort as numbers.
_IDS = np.dtype(">u4")


def to_key(ids: Sequence[int]) -> bytes:
    """Token ids as bytes: small, hashable, and sorted like the ids."""
    return np.asarray(ids, dtype=_IDS).tobytes()


def to_ids(key: bytes) -> np.ndarray:
    """Token ids of a key, int64."""
    return np.frombuffer(key, dtype=_IDS).astype(np.int64)


def shared_lengths(keys: Sequence[bytes]) -> list[int]:
    """Number of first ids that each key shares with the one before it; 0 for the first."""
    shared = [0] * len(keys)
    for number, (before, key) in enumerate(pairwise(keys), start=1):
        common = min(len(before), len(key))
        differ = np.frombuffer(before[:common], dtype=np.uint32) != np.frombuffer(key[:common], dtype=np.uint32)
        shared[number] = int(differ.argmax()) if differ.any() else len(differ)
    return shared


def tree_size(keys: Sequence[bytes]) -> int:
    """Nodes of the prefix tree of sorted keys: the fewest tokens that must be computed."""
    return sum(map(len, keys)) // _IDS.itemsize - sum(shared_lengths(keys))


def split_rows(keys: Sequence[bytes], capacity: int) -> list[list[bytes]]:
    """Cut sorted, distinct keys into rows of at most ``capacity`` tokens; a longer sequence has a row of its own.

    A row begins with a whole sequence: little is computed again where ``capacity`` is several times what is shared.
    """
    rows: list[list[bytes]] = []
    tokens = 0
    for key, shared in zip(keys, shared_lengths(keys), strict=True):
        length = len(key) // _IDS.itemsize
        tokens += length - shared
        if not rows or tokens > capacity:
            rows.append([])
            tokens = length
        rows[-1].append(key)
    return rows


@dataclass(frozen=True)
class Row:
    """Part of a prefix tree; L nodes in depth-first order."""

    tokens_L: np.ndarray
    depth_L: np.ndarray  # number of a node's ancestors, which is its token's position in its sequences
    end_L: np.ndarray  # index behind a node's last descendant: node x descends from y where y <= x < end[y]
    paths: list[np.ndarray]  # nodes of each sequence, from its first token to its last


def build_row(keys: Iterable[bytes]) -> Row:
    """The prefix tree of sorted, distinct keys."""
    keys = list(keys)
    tokens_L, depth_L, end_L = (np.empty(tree_size(keys), dtype=np.int64) for _ in range(3))
    paths: list[np.ndarray] = []
    path, at = np.empty(0, dtype=np.int64), 0
    for key, common in zip(keys, shared_lengths(keys), strict=True):
        ids = to_ids(key)
        new = len(ids) - common
        end_L[path[common:]] = at
        tokens_L[at : at + new] = ids[common:]
        depth_L[at : at + new] = np.arange(common, len(ids))
        path = np.concatenate([path[:common], np.arange(at, at + new)])
        paths.append(path)
        at += new
    end_L[path] = at
    return Row(tokens_L, depth_L, end_L, paths)


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
        self._blocks: dict[int | None, list[tuple[slice, Tensor, Tensor]]] = {}

    def attend(self, attend: Attend, layer: LayerAttention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self._is_chain and (layer.window is None or layer.window >= len(self._depth_L)):
            return attend(q, k, v, None)
        if layer.window not in self._blocks:
            starts = range(0, len(self._depth_L), self._queries)
            self._blocks[layer.window] = [self._block(start, layer, q) for start in starts]
        parts = []
        for queries, keys_K, mask in self._blocks[layer.window]:
            parts.append(attend(q[:, :, queries], k.index_select(2, keys_K), v.index_select(2, keys_K), mask))
        return torch.cat(parts, dim=1)

    def _block(self, start: int, layer: LayerAttention, like: Tensor) -> tuple[slice, Tensor, Tensor]:
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
        return slice(start, stop), keys_K.to(like.device), layer.mask(visible_QK.to(like.device), like)


class Scorer:
    """Scores continuations with a model after ``install_plans``; progress is shown on ``stream``, stderr when None.

    ``requests_scored`` counts requests that were computed, neither repeated nor cached, ``tokens_computed`` the tokens
    that went through the network, of all processes, ``tokens_minimum`` the fewest that could have: the trees' nodes.
    """

    def __init__(self, model: GPT, max_batch_tokens: int, work: SharedWork, stream: TextIO | None = None) -> None:
        self._model, self._max_batch_tokens, self._work, self._stream = model, max_batch_tokens, work, stream
        self._device = model.transformer.wte.weight.device
        self.requests_scored = self.tokens_computed = self.tokens_minimum = 0

    def score(self, requests: list[Request]) -> list[Score]:
        """Scores of the requests, in their order."""
        distinct = list(dict.fromkeys(requests))
        names = [request_key("loglikelihood", *request) for request in distinct]
        # Row: 1 where there is a score, log-likelihood, greedy.
        empty_N3 = torch.zeros(len(distinct), 3, dtype=torch.float64)
        scores_N3, left = self._work.find(names, empty_N3, lambda score: [1.0, *score])
        numbers_of: dict[bytes, list[int]] = {}
        for number in left:
            numbers_of.setdefault(distinct[number][0], []).append(number)
        keys = sorted(numbers_of)
        rows = split_rows(keys, self._max_batch_tokens)
        self.requests_scored += len(left)
        self.tokens_computed += sum(map(tree_size, rows))
        self.tokens_minimum += tree_size(keys)
        if rows:
            hidden = not self._work.ranks.is_first
            with Progress("score", len(left), "request", stream=self._stream, hidden=hidden) as progress:
                batches = [[number for key in row for number in numbers_of[key]] for row in rows]
                rows_of = partial(self._score_row, distinct)
                self._work.compute(batches, names, scores_N3, rows_of, _score_in, progress)
        found = dict(zip(distinct, map(_score_in, scores_N3.tolist()), strict=True))
        return [found[request] for request in requests]

    @torch.inference_mode()
    def _score_row(self, distinct: list[Request], numbers: list[int]) -> Tensor:
        """Rows of the scores of some requests, whose keys are sorted and make up one packed row."""
        requests = [distinct[number] for number in numbers]
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
        hidden_NC = hidden_LC[torch.from_numpy(nodes_N).to(self._device)]
        targets, owners = (torch.from_numpy(each_M[order_M]) for each_M in (targets_M, owners_M))
        logprobs_M, greedy_M = self._score_targets(hidden_NC, targets.to(self._device), owners)
        requests_M = torch.from_numpy(np.repeat(np.arange(len(wanted)), [len(ids) for _, ids in wanted])[order_M])
        sums_J2 = torch.zeros(len(wanted), 2, dtype=torch.float64)
        check_finite(logprobs_M)
        sums_J2.index_add_(0, requests_M, torch.stack([logprobs_M.double(), (~greedy_M).double()], dim=1))
        return torch.stack([torch.ones(len(wanted)), sums_J2[:, 0], sums_J2[:, 1] == 0], dim=1)

    def _score_targets(self, hidden_NC: Tensor, targets_M: Tensor, owners_M: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probability (M,) in fp32 of target tokens, and whether each has the highest logit (M,), on the CPU.

        ``owners_M`` are the positions that predict the targets, as indices into ``hidden_NC``, ascending, on the CPU:
        asking a GPU which of them are in a chunk would wait for it.
        """
        logprobs, greedy = [], []
        rows = max(1, _LOGITS.get(self._device.type, 1 << 27) // self._model.config.padded_vocab_size)
        for first in range(0, len(hidden_NC), rows):
            logits_nV = head_logits(self._model, hidden_NC[first : first + rows])
            low, high = torch.searchsorted(owners_M, torch.tensor([first, first + len(logits_nV)]))
            chosen, own = targets_M[low:high], (owners_M[low:high] - first).to(self._device)
            logprobs.append((logits_nV[own, chosen] - logits_nV.logsumexp(dim=1)[own]).cpu())
            greedy.append((logits_nV.argmax(dim=1)[own] == chosen).cpu())
        return torch.cat(logprobs), torch.cat(greedy)


def check_finite(values: Tensor) -> None:
    """Refuse what a model with damaged weights computes: argmax would make a choice of NaN."""
    if not bool(values.isfinite().all()):
        kind = "NaN" if bool(values.isnan().any()) else "infinite values"
        raise UserError(f"the model computes {kind}, so it has no scores; train or copy its weights again")


def _score_in(row: list[float]) -> Score:
    return row[1], bool(row[2])
