"""Log-likelihoods of many continuations, each shared beginning computed once."""

from typing import TextIO

import numpy as np
import torch
from litgpt.model import GPT

from inheritune_lit.evaluation.attention import TreePlan
from inheritune_lit.evaluation.forward import score_targets
from inheritune_lit.evaluation.prefix_tree import build_row, shared_lengths, split_rows, to_ids, tree_size
from inheritune_lit.evaluation.ranks import Ranks
from inheritune_lit.evaluation.score_cache import ScoreCache, request_key
from inheritune_lit.io.progress import Progress
from inheritune_lit.model.forward import hidden_states

Job = tuple[bytes, bytes]
"""Keys (``prefix_tree.to_key``) of the input and of the continuation, of which all but the last id end the input."""
Score = tuple[float, bool]
"""Log-likelihood in nats, and whether the continuation is the greedy choice."""


class Scorer:
    """Scores continuations.

    Args:
        model: after ``install_plans``.
        max_batch_tokens: tokens a forward pass.
        cache: results of earlier processes.
        ranks: processes that share the work.
        stream: where progress is shown.

    Attributes:
        requests_scored: jobs computed, which excludes repeated and cached ones.
        tokens_computed: tokens that went through the network, of all processes.
        tokens_minimum: nodes of the jobs' prefix trees, the fewest tokens that could have gone through.
    """

    def __init__(self, model: GPT, max_batch_tokens: int, cache: ScoreCache, ranks: Ranks, stream: TextIO) -> None:
        self._model, self._max_batch_tokens = model, max_batch_tokens
        self._cache, self._ranks, self._stream = cache, ranks, stream
        self._device = model.transformer.wte.weight.device
        self.requests_scored = self.tokens_computed = self.tokens_minimum = 0

    def score(self, jobs: list[Job]) -> list[Score]:
        """Scores of the jobs, in their order."""
        distinct = list(dict.fromkeys(jobs))
        scores = self._cached(distinct)
        jobs_of: dict[bytes, list[Job]] = {}
        for job in distinct:
            if job not in scores:
                jobs_of.setdefault(job[0], []).append(job)
        keys = sorted(jobs_of)
        shared = shared_lengths(keys)
        rows = [keys[row.start : row.stop] for row in split_rows(keys, shared, self._max_batch_tokens)]
        self.requests_scored += len(distinct) - len(scores)
        self.tokens_minimum += tree_size(keys, shared)
        if rows:
            self._score_rows(rows, jobs_of, scores)
        return [scores[job] for job in jobs]

    def _score_rows(self, rows: list[list[bytes]], jobs_of: dict[bytes, list[Job]], scores: dict[Job, Score]) -> None:
        """Add the scores of rows; each process does one row at a time."""
        rank, world = self._ranks.rank, self._ranks.world
        total = sum(map(len, jobs_of.values()))
        with Progress("score", total, "request", stream=self._stream, hidden=rank > 0) as progress:
            for first in range(0, len(rows), world):
                now = rows[first : first + world]
                jobs = [[job for key in row for job in jobs_of[key]] for row in now]
                own = [
                    self._score_row(row, jobs_of) if number == rank else torch.zeros(len(jobs[number]), 2).double()
                    for number, row in enumerate(now)
                ]
                self.tokens_computed += sum(tree_size(row, shared_lengths(row)) for row in now)
                made = _as_scores([job for part in jobs for job in part], self._ranks.add_up(torch.cat(own)))
                self._cache.add({_name(job): score for job, score in made.items()})
                scores |= made
                progress.update(len(made))

    def _cached(self, jobs: list[Job]) -> dict[Job, Score]:
        """Scores that are on disk, as the first process sees them: the file may be growing."""
        found = [self._cache.get(_name(job)) if self._ranks.rank == 0 else None for job in jobs]
        is_there = torch.tensor([score is not None for score in found], dtype=torch.float64)
        values = torch.tensor([score or (0.0, False) for score in found], dtype=torch.float64).reshape(-1, 2)
        is_there, values = self._ranks.add_up(is_there).bool(), self._ranks.add_up(values)
        there = [job for job, flag in zip(jobs, is_there.tolist(), strict=True) if flag]
        return _as_scores(there, values[is_there])

    @torch.inference_mode()
    def _score_row(self, keys: list[bytes], jobs_of: dict[bytes, list[Job]]) -> torch.Tensor:
        """Scores of every job of a row, (jobs, 2)."""
        row = build_row(keys)
        tokens_1L, depth_1L = (torch.from_numpy(x).to(self._device)[None] for x in (row.tokens_L, row.depth_L))
        hidden_LC = hidden_states(self._model, tokens_1L, depth_1L, TreePlan(row, self._device))[0]
        wanted = [
            (path, to_ids(continuation))
            for path, key in zip(row.paths, keys, strict=True)
            for _, continuation in jobs_of[key]
        ]
        # M targets, ordered by the N nodes that predict them, of J jobs.
        nodes_N, owners_M = np.unique(np.concatenate([p[-len(ids) :] for p, ids in wanted]), return_inverse=True)
        order_M = np.argsort(owners_M, kind="stable")
        logprobs_M, greedy_M = score_targets(
            self._model,
            hidden_LC[torch.from_numpy(nodes_N).to(self._device)],
            torch.from_numpy(np.concatenate([ids for _, ids in wanted])[order_M]).to(self._device),
            torch.from_numpy(owners_M[order_M]).to(self._device),
        )
        jobs_M = torch.from_numpy(np.repeat(np.arange(len(wanted)), [len(ids) for _, ids in wanted])[order_M])
        sums_J2 = torch.zeros(len(wanted), 2, dtype=torch.float64)
        sums_J2.index_add_(0, jobs_M, torch.stack([logprobs_M.double(), (~greedy_M).double()], dim=1))
        sums_J2[:, 1] = (sums_J2[:, 1] == 0).double()
        return sums_J2


def _name(job: Job) -> str:
    return request_key("loglikelihood", *job)


def _as_scores(jobs: list[Job], values_J2: torch.Tensor) -> dict[Job, Score]:
    return {
        job: (loglikelihood, bool(greedy))
        for job, (loglikelihood, greedy) in zip(jobs, values_J2.tolist(), strict=True)
    }
