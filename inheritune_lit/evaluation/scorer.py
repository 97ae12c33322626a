"""Checkpoints scored on everything asked for, from where an earlier attempt stopped."""

import hashlib
import io
import json
import logging
import math
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from lm_eval.evaluator import evaluate

from inheritune_lit.data.packed import PackedDataset
from inheritune_lit.errors import UserError
from inheritune_lit.evaluation.args import EvaluateArgs
from inheritune_lit.evaluation.cells import bootstrap_stderr, word_perplexity
from inheritune_lit.evaluation.held_out import validate
from inheritune_lit.evaluation.loading import LoadedTask, hidden_bars, told
from inheritune_lit.evaluation.open_lm import LitLM, open_lm
from inheritune_lit.evaluation.results import HELD_OUT, Record, ResultFolder
from inheritune_lit.evaluation.score_cache import Ranks
from inheritune_lit.evaluation.scoring import check_finite
from inheritune_lit.io.manifest import MANIFEST, installed_versions, sha256_file
from inheritune_lit.io.records import without_nan
from inheritune_lit.model.flops import LONGEST_BLOCK

logger = logging.getLogger(__name__)

_OF_ONE_ROW = {"fewshot_context", "construct_requests", "process_results", "doc_to_prefix", "doc_to_target"}
"""What lm-eval calls for a single row."""

_TOKENS = 8192  # of packed data, per forward pass

Scored = tuple[Record, list[Record]]  # a record, and lm-eval's samples


class CheckpointScorer:
    """Scores checkpoints on tasks and, if ``args`` say so, packed data; finished records are kept in ``folder``."""

    def __init__(self, args: EvaluateArgs, tasks: list[LoadedTask], ranks: Ranks, folder: ResultFolder | None) -> None:
        self._args, self._tasks, self._ranks, self._folder = args, tasks, ranks, folder

    def check(self, name: str, checkpoint_dir: Path) -> None:
        """Refuse earlier results of another model or other settings (``UserError``) before any work is done."""
        if self._folder is not None and self._folder.has_results(name):
            for task, (identity, _) in self._jobs(name, self._open(checkpoint_dir, None)).items():
                self._folder.read(name, task, identity)

    def score(self, name: str, checkpoint_dir: Path) -> dict[str, Record]:
        """Records of everything by its name; that of packed data under ``HELD_OUT``."""
        folder, cache_dir = self._folder, self._args.cache_dir
        if folder is not None:
            cache_dir = cache_dir or folder.requests
            if self._ranks.is_first:
                folder.open()
        records: dict[str, Record] = {}
        lm = self._open(checkpoint_dir, cache_dir)
        for task, (identity, score) in self._jobs(name, lm).items():
            record = folder.read(name, task, identity) if folder is not None else None
            if record is None:
                if task != HELD_OUT and self._ranks.is_first:
                    number = len(records.keys() - {HELD_OUT}) + 1
                    logger.info("%s: %s (%d of %d)", name, task, number, len(self._tasks))
                scored, samples = score()
                record = {"checkpoint": str(checkpoint_dir), "identity": identity} | scored
                if folder is not None and self._ranks.is_first:
                    folder.write(name, task, record, samples if self._args.log_samples else [])
            records[task] = record
        return records

    def _open(self, checkpoint_dir: Path, cache_dir: Path | None) -> LitLM:
        options = {name: getattr(self._args, name) for name in ("dtype", "quantize", "bos", "max_batch_tokens")}
        device = str(self._ranks.device)
        return open_lm(checkpoint_dir, **options, cache_dir=cache_dir, device=device, ranks=self._ranks)

    def _jobs(self, name: str, lm: LitLM) -> dict[str, tuple[Record, Callable[[], Scored]]]:
        """What is to be scored: the model and settings that must not change between its parts, and how to."""
        jobs: dict[str, tuple[Record, Callable[[], Scored]]] = {}
        if (val_data := self._args.val_data) is not None:
            jobs[HELD_OUT] = held_out_settings(self._args), partial(self._score_held_out, name, lm, val_data)
        jobs |= {task.name: (task.identity, partial(score_task, lm, task, self._args.limit)) for task in self._tasks}
        installed = installed_versions()
        versions = {name: installed.get(name) for name in ("inheritune-lit", "torch", "litgpt", "lm-eval")}
        same = {**lm.provenance(), "limit": self._args.limit, "versions": versions}
        # As it will be read again: tuples become lists.
        return {task: (json.loads(json.dumps(same | own)), score) for task, (own, score) in jobs.items()}

    def _score_held_out(self, name: str, lm: LitLM, val_data: Path) -> Scored:
        """The loss in nats per token, as ``validate`` has it."""
        block_size = self._args.max_seq_length or min(lm.max_length, LONGEST_BLOCK)
        dataset, most = PackedDataset(val_data, "val", block_size), self._args.max_batch_tokens or _TOKENS
        batch = max(1, min(_TOKENS, most) // block_size)
        about = {"label": f"{name}: held-out text", "ranks": self._ranks, "cache": lm.work.cache}
        found = validate(lm.model, dataset, batch, _most_blocks(self._args), check=check_finite, **about)
        return {**without_nan(asdict(found)), "block_size": block_size}, []


def held_out_settings(args: EvaluateArgs) -> Record:
    """What identifies the score of packed data; nothing where none is asked for."""
    if args.val_data is None:
        return {}
    val_sha256 = sha256_file(args.val_data / MANIFEST)
    return {"val_sha256": val_sha256, "val_blocks": _most_blocks(args), "max_seq_length": args.max_seq_length}


def _most_blocks(args: EvaluateArgs) -> int | None:
    """Samples of packed data that are scored, which ``--limit`` bounds too; None for all."""
    return min((number for number in (args.val_blocks, args.limit) if number is not None), default=None)


def score_task(lm: LitLM, loaded: LoadedTask, limit: int | None) -> Scored:
    """Score the first ``limit`` rows of one task, all when None.

    ``scores`` of the record is ``{metric: {"value", "stderr", "n", "higher_is_better"}}`` and ``documents`` has a list
    per metric with each row's part in it, beside the rows' hashes.
    """
    start, truncated = time.monotonic(), lm.truncated
    tokens, requests = lm.scorer.tokens_computed, lm.scorer.requests_scored
    name = loaded.name
    # Our bar goes to the real stderr. lm-eval's cache of requests is keyed by text alone, so that another model would
    # be given the first one's: it stays off.
    with explain_task(name), hidden_bars(), redirect_stdout(io.StringIO()):
        tasks = {"tasks": {name: loaded.task}, "groups": {}, "group_map": {}}
        outcome = evaluate(lm, tasks, limit=limit, cache_requests=False, bootstrap_iters=1000, log_samples=True)
        everything = outcome["samples"][name]
        filters = list(dict.fromkeys(sample["filter"] for sample in everything))
        samples = [sample for sample in everything if sample["filter"] == filters[0]]
        documents: dict[str, list[Any]] = {}
        for sample in everything:
            for metric in sample["metrics"]:
                title = metric if len(filters) == 1 else f"{metric},{sample['filter']}"
                documents.setdefault(title, []).append(_plain(sample[metric]))
        scores = _scores(outcome["results"][name], documents, filters[0], outcome["higher_is_better"].get(name, {}))
        if "word_perplexity" in scores:
            rows_N2 = np.array(documents["word_perplexity"])
            scores["word_perplexity"]["stderr"] = bootstrap_stderr(rows_N2, word_perplexity)
        answers, choices = zip(*(loaded.answers[sample["doc_id"]] for sample in samples), strict=True)
    record = {
        **loaded.identity,
        "scores": scores,
        "prompts_sha256": hashlib.sha256("".join(s["prompt_hash"] for s in samples).encode()).hexdigest(),
        "truncated": lm.truncated - truncated,
        "requests": lm.scorer.requests_scored - requests,
        "tokens_computed": lm.scorer.tokens_computed - tokens,
        "seconds": round(time.monotonic() - start, 1),
        "tag": loaded.tag,
        "answers": list(answers),
        "choices": list(choices),
        "documents": {"hash": [sample["doc_hash"][:16] for sample in samples], **documents},
    }
    return record, everything


@contextmanager
def explain_task(name: str) -> Iterator[None]:
    """Turns what lm-eval or a task raises, but not the machine or our model, into one line that names task and row."""
    try:
        yield
    except UserError as error:
        raise UserError(f"task {name!r}: {error}") from error
    except Exception as error:
        frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
        ours = any(isinstance(frame.f_locals.get("self"), LitLM) for frame in frames)
        if ours or isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno is not None):
            raise
        row = ""
        for number, frame in enumerate(frames):
            called = {each.f_code.co_name for each in frames[number + 1 : number + 3]}  # a decorator may stand between
            if "doc_id" in frame.f_locals and called & _OF_ONE_ROW:
                row = f", row {frame.f_locals['doc_id'] + 1}"
        problem = f"task {name!r}{row}: lm-eval cannot score it ({told(error)})"
        raise UserError(f"{problem}; leave it out or fix it") from error


def _scores(raw: Record, documents: dict[str, list[Any]], first: str, directions: Record) -> dict[str, Record]:
    """lm-eval's "acc,none" and "acc_stderr,none" as one entry per metric, and filter where there are several."""
    scores = {}
    for title, rows in documents.items():
        metric, _, chosen = title.partition(",")
        value, stderr = (raw.get(f"{kind},{chosen or first}") for kind in (metric, f"{metric}_stderr"))
        if not isinstance(value, int | float | np.number) or not math.isfinite(value):
            raise UserError(f"its {title} is {value!r}, which is not a number; leave the metric out")
        if not isinstance(stderr, int | float) or math.isnan(stderr):
            stderr = None
        score = {"value": float(value), "stderr": None if stderr is None else float(stderr), "n": len(rows)}
        scores[title] = {**score, "higher_is_better": directions.get(metric) is not False}
    return scores


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_plain(part) for part in value]
    return float(value) if isinstance(value, bool | int | float | np.number) else str(value)
