"""``inheritune eval``: lm-eval tasks and held-out loss for litgpt checkpoints."""

import io
import json
import logging
import math
import os
import sys
import tempfile
import time
from contextlib import redirect_stderr
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from lm_eval.evaluator import simple_evaluate

from inheritune_lit.checkpoint.folder import WEIGHTS
from inheritune_lit.checkpoint.manifest import read_manifest, sha256_file, write_manifest
from inheritune_lit.checkpoint.output import check_vacant, new_folder
from inheritune_lit.data.fits import check_fits
from inheritune_lit.data.packed import PackedDataset
from inheritune_lit.errors import UserError
from inheritune_lit.evaluation.lit_lm import LitLM
from inheritune_lit.evaluation.open_lm import open_lm
from inheritune_lit.evaluation.tables import mmlu_macro, results_table
from inheritune_lit.evaluation.tasks import ResolvedTasks, TaskResolver
from inheritune_lit.model.load import load_config
from inheritune_lit.tokenizer import Tokenizer
from inheritune_lit.validation import validate

_LONGEST_HELD_OUT_BLOCK = 2048


def evaluate(
    checkpoint_dirs: list[Path],
    *,
    tasks: str | None = None,
    val_data: Path | None = None,
    val_blocks: int | None = None,
    max_seq_length: int | None = None,
    data_dir: Path | None = None,
    limit: int | None = None,
    num_fewshot: int | None = None,
    batch_size: int = 16,
    dtype: str = "float32",
    out_dir: Path | None = None,
) -> dict[str, Any]:
    """Score checkpoints and print them side by side.

    Args:
        checkpoint_dirs: litgpt checkpoints.
        tasks: lm-eval task names or task YAML files, separated by commas; "mmlu" is its 57 subjects.
        val_data: packed data whose validation split is scored.
        val_blocks: blocks of it; all when None.
        max_seq_length: tokens a block; the model's block size, at most 2048, when None.
        data_dir: folder of local task rows; the hub's when None.
        limit: rows a task.
        num_fewshot: examples in the prompt; None for the task's own number, 5 for MMLU.
        batch_size: sequences a forward pass.
        dtype: "float32" or "bfloat16", of the weights.
        out_dir: folder for ``results.json`` and ``results.md``; only printed when None.

    Returns:
        ``{"settings": ..., "checkpoints": [{"name", "path", "n_layer", "parameters", "held_out", "tasks":
        {task: {metric: {"value", "stderr", "n"}}}, "mmlu_macro", "truncated", ...}]}``

    Raises:
        UserError: bad input; nothing is written.
    """
    _check_arguments(checkpoint_dirs, tasks, val_data, limit, batch_size)
    if out_dir is not None:
        check_vacant(out_dir)
    for checkpoint_dir in checkpoint_dirs:  # before the first hour is spent on the first of them
        load_config(checkpoint_dir)
        if val_data is not None:
            check_fits(val_data, checkpoint_dir)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    results: dict[str, Any] = {
        "settings": {
            "limit": limit,
            "num_fewshot": num_fewshot,
            "dtype": dtype,
            "softmax_dtype": "float32",
            "bos": "none",
            "empty_context_prefix": "eos",
            "device": device,
            "val_data": str(val_data) if val_data else None,
        },
        "checkpoints": [],
    }
    with tempfile.TemporaryDirectory(prefix="inheritune-eval-") as scratch:
        resolved = _resolve(tasks, data_dir, num_fewshot, Path(scratch))
        print(
            f"evaluate {len(checkpoint_dirs)} checkpoints on {len(resolved.names)} tasks"
            f"{f', at most {limit} rows each' if limit else ''}"
            f"{' and held-out text' if val_data else ''} ({dtype} on {device})",
            file=sys.stderr,
        )
        for name, checkpoint_dir in zip(_names(checkpoint_dirs), checkpoint_dirs, strict=True):
            start = time.monotonic()
            lm = open_lm(checkpoint_dir, dtype=dtype, device=device)
            model = lm.model
            record = _describe(name, checkpoint_dir, model)
            record["held_out"] = None
            if val_data is not None:
                block_size = max_seq_length or min(model.max_seq_length, _LONGEST_HELD_OUT_BLOCK)
                held_out = PackedDataset(val_data, "val", block_size)
                label = f"{name}: held-out text"
                record["held_out"] = asdict(validate(model, held_out, batch_size, val_blocks, device, label=label))
                record["held_out"]["max_seq_length"] = block_size
            record |= _score_tasks(lm, resolved, limit)
            record["seconds"] = round(time.monotonic() - start, 1)
            results["checkpoints"].append(record)
    table = results_table(results)
    print(table)
    if truncated := {r["name"]: r["truncated"] for r in results["checkpoints"] if r["truncated"]}:
        print(f"prompts cut to the model's context: {truncated}", file=sys.stderr)
    if out_dir is not None:
        with new_folder(out_dir) as staging:
            (staging / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
            (staging / "results.md").write_text(table, encoding="utf-8")
            write_manifest(staging, "evaluation", {"settings": results["settings"]})
    return results


def _check_arguments(
    checkpoint_dirs: list[Path], tasks: str | None, val_data: Path | None, limit: int | None, batch_size: int
) -> None:
    if not checkpoint_dirs:
        raise UserError("no checkpoint; give --checkpoint_dir one or more folders")
    if not tasks and val_data is None:
        raise UserError("nothing to score; give --tasks, such as piqa,mmlu, or --val_data")
    for name, value in (("limit", limit), ("batch_size", batch_size)):
        if value is not None and value < 1:
            raise UserError(f"--{name} is {value}; give 1 or more")


def _resolve(tasks: str | None, data_dir: Path | None, num_fewshot: int | None, scratch: Path) -> ResolvedTasks:
    if not tasks:
        return ResolvedTasks([], [], None)
    _quieten()
    asked = [name.strip() for name in tasks.split(",") if name.strip()]
    return TaskResolver(data_dir, num_fewshot, scratch).resolve(asked)


def _names(checkpoint_dirs: list[Path]) -> list[str]:
    """A short name each: the folder's, or its parent's for a run's ``final``; the whole path where those clash."""
    short = [path.parent.name if path.name == "final" else path.name for path in map(Path.absolute, checkpoint_dirs)]
    return [str(path) if short.count(name) > 1 else name for name, path in zip(short, checkpoint_dirs, strict=True)]


def _describe(name: str, checkpoint_dir: Path, model: torch.nn.Module) -> dict[str, Any]:
    return {
        "name": name,
        "path": str(checkpoint_dir),
        "weights_sha256": sha256_file(checkpoint_dir / WEIGHTS),
        "tokenizer_sha256": Tokenizer(checkpoint_dir).sha256(),
        "n_layer": model.config.n_layer,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "manifest": read_manifest(checkpoint_dir),
    }


def _score_tasks(lm: LitLM, resolved: ResolvedTasks, limit: int | None) -> dict[str, Any]:
    """Scores of one checkpoint on all tasks."""
    tasks: dict[str, Any] = {}
    if resolved.names:
        # lm-eval draws bars even where nobody sees them move; ours goes to the real stderr.
        with redirect_stderr(sys.stderr if sys.stderr.isatty() else io.StringIO()):
            outcome = simple_evaluate(
                model=lm,
                tasks=resolved.specs,
                task_manager=resolved.manager,
                limit=limit,
                log_samples=False,
                bootstrap_iters=1000,
            )
        for name in resolved.names:
            tasks[name] = _metrics(outcome["results"][name], outcome["n-samples"][name]["effective"])
    return {"tasks": tasks, "mmlu_macro": mmlu_macro(tasks), "truncated": lm.truncated}


def _metrics(raw: dict[str, Any], n: int) -> dict[str, Any]:
    """lm-eval's "acc,none" and "acc_stderr,none" as one entry a metric."""
    values = {key.split(",")[0]: value for key, value in raw.items() if "," in key}
    metrics = {}
    for metric, value in values.items():
        if metric.endswith("_stderr"):
            continue
        stderr = values.get(f"{metric}_stderr")
        known = isinstance(stderr, int | float) and not math.isnan(stderr)
        metrics[metric] = {"value": value, "stderr": stderr if known else None, "n": n}
    return metrics


def _quieten() -> None:
    """lm-eval and datasets announce every step; ours are announced once, by ``Progress``."""
    import datasets

    datasets.disable_progress_bars()
    os.environ.setdefault("LOGLEVEL", "ERROR")
    for name in ("lm_eval", "lm-eval", "datasets"):
        logging.getLogger(name).setLevel(logging.ERROR)
