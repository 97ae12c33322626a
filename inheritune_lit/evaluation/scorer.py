"""Checkpoints scored on everything asked for, from where an earlier attempt stopped."""

import hashlib
import json
import logging
import math
import os
import time
from collections.abc import Callable
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
from inheritune_lit.evaluation.lit_lm import LitLM
from inheritune_lit.evaluation.loading import LoadedTask, hidden_bars
from inheritune_lit.evaluation.open_lm import open_lm
from inheritune_lit.evaluation.ranks import Ranks
from inheritune_lit.io.folders import check_vacant, new_folder, replace_text
from inheritune_lit.io.manifest import (
    MANIFEST,
    installed_versions,
    read_manifest,
    replace_manifest,
    sha256_file,
    write_manifest,
)
from inheritune_lit.io.reading import read_json
from inheritune_lit.io.records import without_nan
from inheritune_lit.io.settings_guard import check_settings
from inheritune_lit.model.flops import LONGEST_BLOCK

logger = logging.getLogger(__name__)

HELD_OUT = "held_out"
"""Name of the record of packed data beside those of tasks."""
_GROWS = ("checkpoints", "columns")

Record = dict[str, Any]
"""What was found and what it is of, ready for JSON."""
Scored = tuple[Record, list[Record]]
"""A record, and lm-eval's samples."""


class ResultFolder:
    """``out_dir/<checkpoint>/<task>.json`` beside ``results.json``, ``results.md`` and ``results.csv``.

    The folder is a new one, or of an evaluation with the same settings; checkpoints and columns may be more. One that
    holds something else is a ``UserError``.
    """

    def __init__(self, out_dir: Path, settings: Record) -> None:
        self._out_dir, self._settings = out_dir, settings
        manifest = read_manifest(out_dir) if out_dir.is_dir() else None
        if manifest is None or manifest.get("kind") != "evaluation":
            check_vacant(out_dir)
            return
        before = {key: manifest.get("settings", {}).get(key) for key in settings}
        check_settings(f"{out_dir} was made", before, settings, free=_GROWS)
        for key in _GROWS:
            if lost := [entry for entry in before[key] or [] if entry not in settings[key]]:
                raise UserError(f"{out_dir} has results of {key} {lost[0]!r} too; name it, or give another --out_dir")

    def has_results(self, checkpoint: str) -> bool:
        """Whether a task is finished."""
        return any(self._folder(checkpoint).glob("*.json"))

    def read(self, checkpoint: str, task: str, identity: Record) -> Record | None:
        """The finished record of a task, or None; a ``UserError`` if another model, settings or rows made it."""
        path = self._folder(checkpoint) / f"{task}.json"
        if not path.is_file():
            return None
        remedy = "remove it, the same command then scores it again"
        record = read_json(path, "a finished result", remedy)
        before = record.get("identity")
        if not isinstance(before, dict):
            raise UserError(f"{path} is damaged, it has no identity; {remedy}")
        check_settings(f"{path} was made", {key: before.get(key) for key in identity}, identity)
        return record

    def write(self, checkpoint: str, task: str, record: Record, samples: list[Record]) -> None:
        """Keep a finished record; the samples are there before it."""
        self._open()
        folder = self._folder(checkpoint)
        folder.mkdir(exist_ok=True)
        if samples:
            rows = [json.dumps(sample, default=str, ensure_ascii=False) + "\n" for sample in samples]
            replace_text(folder / f"{task}.samples.jsonl", "".join(rows))
        # A line per field: the lists of rows would otherwise take a line per entry.
        lines = [f"  {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in record.items()]
        replace_text(folder / f"{task}.json", "{\n" + ",\n".join(lines) + "\n}\n")

    def write_summary(self, results: Record, markdown: str, table: str) -> None:
        """Write the three files that sum up."""
        self._open()
        replace_text(self._out_dir / "results.json", json.dumps(results, indent=2, ensure_ascii=False) + "\n")
        replace_text(self._out_dir / "results.csv", table)
        replace_text(self._out_dir / "results.md", markdown)

    def _open(self) -> None:
        """Make the folder, or note in its manifest what has been added."""
        manifest = read_manifest(self._out_dir)
        if manifest is None:
            with new_folder(self._out_dir) as staging:
                write_manifest(staging, "evaluation", {"settings": self._settings})
        elif manifest["settings"] != self._settings:
            replace_manifest(self._out_dir, {**manifest, "settings": self._settings})

    def _folder(self, checkpoint: str) -> Path:
        return self._out_dir / checkpoint.replace(os.sep, "_")


class CheckpointScorer:
    """Scores one checkpoint after the other on tasks and, where ``args`` say so, packed data.

    Finished records are kept in ``folder`` and looked for there; None keeps none.
    """

    def __init__(self, args: EvaluateArgs, tasks: list[LoadedTask], ranks: Ranks, folder: ResultFolder | None) -> None:
        self._args, self._tasks, self._ranks, self._folder = args, tasks, ranks, folder

    def check(self, name: str, checkpoint_dir: Path) -> None:
        """Refuse earlier results of another model or other settings (``UserError``) before any work is done."""
        if self._folder is not None and self._folder.has_results(name):
            lm = self._open(checkpoint_dir)
            for task in self._tasks:
                self._folder.read(name, task.name, self._identity(lm, task.identity))

    def score(self, name: str, checkpoint_dir: Path) -> dict[str, Record]:
        """Records of everything by its name; that of packed data under ``HELD_OUT``."""
        lm, records = self._open(checkpoint_dir), {}
        if self._args.val_data is not None:
            about: Record = {"identity": self._identity(lm, {"limit": None, **held_out_settings(self._args)})}
            score = partial(self._score_held_out, lm, name, self._args.val_data)
            records[HELD_OUT] = self._once(name, HELD_OUT, about, score)
        for number, task in enumerate(self._tasks, start=1):
            about = {"checkpoint": str(checkpoint_dir), "identity": self._identity(lm, task.identity)}
            score = partial(score_task, lm, task, self._args.limit)
            records[task.name] = self._once(name, task.name, about, score, f" ({number} of {len(self._tasks)})")
        return records

    def _once(self, name: str, task: str, about: Record, score: Callable[[], Scored], count: str = "") -> Record:
        """The record that is kept, or a new one."""
        record = self._folder.read(name, task, about["identity"]) if self._folder is not None else None
        if record is None:
            if count and self._ranks.is_first:
                logger.info("%s: %s%s", name, task, count)
            scored, samples = score()
            record = about | scored
            if self._folder is not None and self._ranks.is_first:
                self._folder.write(name, task, record, samples if self._args.log_samples else [])
        return record

    def _score_held_out(self, lm: LitLM, name: str, folder: Path) -> Scored:
        """The loss in nats per token, as ``validate`` has it."""
        block_size = self._args.max_seq_length or min(lm.max_length, LONGEST_BLOCK)
        dataset = PackedDataset(folder, "val", block_size)
        batch_size = max(1, 8192 // block_size)
        label = f"{name}: held-out text" if self._ranks.is_first else None
        result = validate(lm.model, dataset, batch_size, self._args.val_blocks, label, self._ranks)
        return {**without_nan(asdict(result)), "block_size": block_size}, []

    def _open(self, checkpoint_dir: Path) -> LitLM:
        names = ("dtype", "quantize", "bos", "max_batch_tokens", "cache_dir")
        options = {name: getattr(self._args, name) for name in names}
        return open_lm(checkpoint_dir, **options, device=str(self._ranks.device), ranks=self._ranks)

    def _identity(self, lm: LitLM, more: Record) -> Record:
        """What must not change between the parts of a result: the model and the settings it is read with."""
        installed = installed_versions()
        versions = {name: installed.get(name) for name in ("inheritune-lit", "torch", "litgpt", "lm-eval")}
        same = {**lm.provenance(), "limit": self._args.limit, "versions": versions, **more}
        return json.loads(json.dumps(same))  # as it will be read again: tuples become lists


def held_out_settings(args: EvaluateArgs) -> Record:
    """What identifies the score of packed data; nothing where none is asked for."""
    if args.val_data is None:
        return {}
    val_sha256 = sha256_file(args.val_data / MANIFEST)
    return {"val_sha256": val_sha256, "val_blocks": args.val_blocks, "max_seq_length": args.max_seq_length}


def score_task(lm: LitLM, loaded: LoadedTask, limit: int | None) -> Scored:
    """Score the first ``limit`` rows of one task, all when None.

    ``scores`` of the record is ``{metric: {"value", "stderr", "n", "higher_is_better"}}`` and ``documents`` has a list
    per metric with each row's part in it, beside the rows' hashes.
    """
    start, truncated = time.monotonic(), lm.truncated
    tokens, requests = lm.scorer.tokens_computed, lm.scorer.requests_scored
    name, task = loaded.name, loaded.task
    # Our bar goes to the real stderr. lm-eval's cache of requests is keyed by text alone, so that another model would
    # be given the first one's: it stays off.
    with hidden_bars():
        tasks = {"tasks": {name: task}, "groups": {}, "group_map": {}}
        outcome = evaluate(lm, tasks, limit=limit, cache_requests=False, bootstrap_iters=1000, log_samples=True)
    samples = outcome["samples"][name]
    chosen = samples[0]["filter"]
    samples = [sample for sample in samples if sample["filter"] == chosen]
    documents = {metric: [_plain(sample[metric]) for sample in samples] for metric in samples[0]["metrics"]}
    scores = _scores(outcome["results"][name], chosen, len(samples), outcome["higher_is_better"].get(name, {}))
    if "word_perplexity" in scores:
        rows_N2 = np.array(documents["word_perplexity"])
        scores["word_perplexity"]["stderr"] = bootstrap_stderr(rows_N2, word_perplexity)
    answers, choices = zip(*(_answer(task, sample["doc"]) for sample in samples), strict=True)
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
    return record, samples


def _scores(raw: Record, chosen: str, n: int, directions: Record) -> dict[str, Record]:
    """lm-eval's "acc,none" and "acc_stderr,none" as one entry per metric."""
    values = {key.split(",")[0]: value for key, value in raw.items() if key.endswith(f",{chosen}")}
    scores = {}
    for metric, value in values.items():
        if not metric.endswith("_stderr"):
            stderr = values.get(f"{metric}_stderr")
            if not isinstance(stderr, int | float) or math.isnan(stderr):
                stderr = None
            score = {"value": float(value), "stderr": None if stderr is None else float(stderr), "n": n}
            scores[metric] = {**score, "higher_is_better": directions.get(metric) is not False}
    return scores


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_plain(part) for part in value]
    return float(value) if isinstance(value, bool | int | float | np.number) else str(value)


def _answer(task: Any, doc: Record) -> tuple[int | None, int | None]:
    """Index of the right choice and how many there are; None where the task has no such thing."""
    if task.OUTPUT_TYPE != "multiple_choice":
        return None, None
    text, target = task.doc_to_text(doc), task.doc_to_target(doc)
    answer = text if isinstance(text, int) else target  # WinoGrande has the answers as contexts
    return (answer if isinstance(answer, int) else None), len(task.doc_to_choice(doc))
