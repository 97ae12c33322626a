"""One task scored with one model: its scores, and what every row contributed to them."""

import hashlib
import io
import json
import math
import sys
import time
from contextlib import redirect_stderr
from typing import Any

import numpy as np
from lm_eval.evaluator import evaluate

from inheritune_lit.evaluation.lit_lm import LitLM
from inheritune_lit.evaluation.loading import LoadedTask
from inheritune_lit.evaluation.significance import bootstrap_stderr, word_perplexity
from inheritune_lit.io.manifest import installed_versions

_BOOTSTRAPS = 1000
_HASH_DIGITS = 16
_VERSIONS = ("inheritune-lit", "torch", "litgpt", "lm-eval")


def identity(provenance: dict[str, Any], limit: int | None) -> dict[str, Any]:
    """What must not change between the parts of a result: the model and the settings it is read with.

    Args:
        provenance: the adapter's.
        limit: rows per task.
    """
    installed = installed_versions()
    return {**provenance, "limit": limit, "versions": {name: installed.get(name) for name in _VERSIONS}}


def score_task(lm: LitLM, loaded: LoadedTask, limit: int | None) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Score one task.

    Args:
        lm: the model.
        loaded: the task.
        limit: rows; all when None.

    Returns:
        The record, ready for JSON: ``scores`` is ``{metric: {"value", "stderr", "n", "higher_is_better"}}`` and
        ``documents`` has a list a metric with each row's part in it; and lm-eval's samples.
    """
    start, truncated = time.monotonic(), lm.truncated
    tokens, requests = lm.tokens_computed, lm.requests_scored
    name, task = loaded.name, loaded.task
    # lm-eval draws bars even where nobody sees them move; ours goes to the real stderr. Its cache of requests is keyed
    # by text alone, so that another model would be given the first one's: it stays off.
    with redirect_stderr(sys.stderr if sys.stderr.isatty() else io.StringIO()):
        outcome = evaluate(
            lm=lm,
            task_dict={"tasks": {name: task}, "groups": {}, "group_map": {}},
            limit=limit,
            cache_requests=False,
            bootstrap_iters=_BOOTSTRAPS,
            log_samples=True,
        )
    samples = outcome["samples"][name]
    first_filter = samples[0]["filter"]
    samples = [sample for sample in samples if sample["filter"] == first_filter]
    directions = outcome["higher_is_better"].get(name, {})
    documents = _documents(samples)
    scores = _scores(outcome["results"][name], first_filter, len(samples))
    for metric, score in scores.items():
        score["higher_is_better"] = directions.get(metric) is not False
    if "word_perplexity" in scores:
        rows_N2 = np.array(documents["word_perplexity"])
        scores["word_perplexity"]["stderr"] = bootstrap_stderr(rows_N2, word_perplexity)
    answers = [_answer(task, sample["doc"]) for sample in samples]
    record = {
        **loaded.describe(),
        "scores": scores,
        "prompts_sha256": hashlib.sha256("".join(s["prompt_hash"] for s in samples).encode()).hexdigest(),
        "truncated": lm.truncated - truncated,
        "requests": lm.requests_scored - requests,
        "tokens_computed": lm.tokens_computed - tokens,
        "seconds": round(time.monotonic() - start, 1),
        "tag": loaded.tag,
        "answers": [answer for answer, _ in answers],
        "choices": [choices for _, choices in answers],
        "documents": documents,
    }
    return record, samples


def samples_text(samples: list[dict[str, Any]]) -> str:
    """lm-eval's samples as jsonl."""
    return "".join(json.dumps(sample, default=str, ensure_ascii=False) + "\n" for sample in samples)


def _scores(raw: dict[str, Any], chosen_filter: str, n: int) -> dict[str, dict[str, Any]]:
    """lm-eval's "acc,none" and "acc_stderr,none" as one entry a metric."""
    chosen = (key for key in raw if key.endswith(f",{chosen_filter}"))
    values: dict[str, Any] = {key.split(",")[0]: raw[key] for key in chosen}
    scores = {}
    for metric, value in values.items():
        if metric.endswith("_stderr"):
            continue
        stderr = values.get(f"{metric}_stderr")
        if not isinstance(stderr, int | float) or math.isnan(stderr):
            stderr = None
        scores[metric] = {"value": float(value), "stderr": None if stderr is None else float(stderr), "n": n}
    return scores


def _documents(samples: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Each row's hash and its part in every metric."""
    documents: dict[str, list[Any]] = {"hash": [sample["doc_hash"][:_HASH_DIGITS] for sample in samples]}
    for metric in samples[0]["metrics"]:
        documents[metric] = [_plain(sample[metric]) for sample in samples]
    return documents


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_plain(part) for part in value]
    return float(value) if isinstance(value, bool | int | float | np.number) else str(value)


def _answer(task: Any, doc: dict[str, Any]) -> tuple[int | None, int | None]:
    """Index of the right choice and how many there are; None where the task has no such thing."""
    if task.OUTPUT_TYPE != "multiple_choice":
        return None, None
    text, target = task.doc_to_text(doc), task.doc_to_target(doc)
    answer = text if isinstance(text, int) else target  # WinoGrande has the answers as contexts
    return (answer if isinstance(answer, int) else None), len(task.doc_to_choice(doc))
