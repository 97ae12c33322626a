"""``inheritune eval``: suites, lm-eval tasks and held-out loss for one or several checkpoints."""

import logging
import os
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from inheritune_lit.checkpoint.config import load_config
from inheritune_lit.checkpoint.folder import is_litgpt_folder
from inheritune_lit.data.compatibility import check_fits
from inheritune_lit.errors import UserError
from inheritune_lit.evaluation.cells import cells_of
from inheritune_lit.evaluation.encoding import Bos
from inheritune_lit.evaluation.loading import LoadedTask, load_tasks
from inheritune_lit.evaluation.open_lm import Dtype
from inheritune_lit.evaluation.ranks import Place, find_place
from inheritune_lit.evaluation.result_folder import ResultFolder
from inheritune_lit.evaluation.scorer import ModelOptions, Scorer
from inheritune_lit.evaluation.suite import Suite, load_suite, suite_of_tasks
from inheritune_lit.evaluation.tables import ModelRow, results_csv, results_markdown
from inheritune_lit.evaluation.tasks import TaskResolver
from inheritune_lit.evaluation.val_data import NAME as HELD_OUT
from inheritune_lit.evaluation.val_data import HeldOut
from inheritune_lit.inherit.reference import open_reference
from inheritune_lit.io.manifest import read_manifest
from inheritune_lit.model.quantize import Quantization


def evaluate(
    checkpoint_dirs: list[Path],
    *,
    suite: str | None = None,
    tasks: str | None = None,
    val_data: Path | None = None,
    val_blocks: int | None = None,
    max_seq_length: int | None = None,
    data_dir: Path | None = None,
    limit: int | None = None,
    num_fewshot: int | None = None,
    dtype: Dtype = "float32",
    quantize: Quantization | None = None,
    bos: Bos = "none",
    max_batch_tokens: int | None = None,
    log_samples: bool = False,
    cache_dir: Path | None = None,
    devices: int | Literal["auto"] = 1,
    num_nodes: int = 1,
    out_dir: Path | None = None,
) -> dict[str, Any]:
    """Score checkpoints and print them side by side.

    Args:
        checkpoint_dirs: checkpoint folders; the first is the one the others are compared with.
        suite: name of a suite, or its YAML file.
        tasks: instead, lm-eval task names or task YAML files, separated by commas; "mmlu" is its 57 subjects.
        val_data: packed data whose validation split is scored.
        val_blocks: blocks of it; all when None.
        max_seq_length: tokens a block; the model's context, at most 2048, when None.
        data_dir: folder of local task rows; the hub's when None.
        limit: rows a task.
        num_fewshot: examples in the prompt; None for the suite's or the task's own number, 5 for MMLU.
        dtype: "float32" or "bfloat16", of the weights.
        quantize: bitsandbytes type of the weights; None for none.
        bos: "none" puts nothing before a prompt, "model" what the model's tokenizer does.
        max_batch_tokens: tokens a forward pass; what fits into memory when None.
        log_samples: keep lm-eval's samples, prompts and answers of each row, in ``out_dir``.
        cache_dir: folder of the scores of single requests, so that a task killed in its middle goes on there, and
            other tasks with equal requests don't compute them again.
        devices, num_nodes: each process on them scores a share of the requests; the first prints and writes.
        out_dir: folder of results, a file a model and task as it finishes; the same call continues there. Only printed
            when None.

    Returns:
        What ``results.json`` holds: ``{"settings": ..., "checkpoints": [{"name", "path", "n_layer", "parameters",
        "held_out", "tasks": {task: {metric: {"value", "stderr", "n", ...}}}, "cells", "truncated", ...}]}``

    Raises:
        UserError: bad input; nothing is written.
    """
    _check_arguments(checkpoint_dirs, suite, tasks, val_data, log_samples, out_dir)
    _check_numbers(limit=limit, max_batch_tokens=max_batch_tokens, val_blocks=val_blocks, max_seq_length=max_seq_length)
    for checkpoint_dir in checkpoint_dirs:  # before the first hour is spent on the first of them
        if is_litgpt_folder(checkpoint_dir) or not checkpoint_dir.is_dir():
            load_config(checkpoint_dir)
        else:
            open_reference(checkpoint_dir, org="local")
        if val_data is not None:
            check_fits(val_data, checkpoint_dir)
    chosen = load_suite(suite) if suite else suite_of_tasks(tasks) if tasks else None
    place = find_place(devices, num_nodes)
    options = ModelOptions(dtype, quantize, bos, max_batch_tokens)
    held_out = HeldOut(val_data, val_blocks, max_seq_length) if val_data is not None else None
    names = _names(checkpoint_dirs)
    settings = {
        "suite": chosen.name if chosen else None,
        "limit": limit,
        "num_fewshot": num_fewshot,
        **{key: value for key, value in asdict(options).items() if key != "max_batch_tokens"},
        "device": place.device.type,
        **(held_out.describe() if held_out else {}),
        "checkpoints": names,
        "columns": [column.task for column in chosen.columns] if chosen else [],
    }
    folder = ResultFolder(out_dir, settings) if out_dir is not None else None
    with tempfile.TemporaryDirectory(prefix="inheritune-eval-") as scratch:
        loaded, leaves = _load(chosen, data_dir, num_fewshot, limit, Path(scratch), place)
        scorer = Scorer(loaded, held_out, options, place, limit, folder, log_samples, cache_dir)
        for name, checkpoint_dir in zip(names, checkpoint_dirs, strict=True):
            scorer.check(name, checkpoint_dir)
        done = [scorer.score(name, path) for name, path in zip(names, checkpoint_dirs, strict=True)]
    rows, described = [], []
    for number, (name, path) in enumerate(zip(names, checkpoint_dirs, strict=True)):
        cells = []
        if chosen is not None:
            by_task = [{asked: [records[leaf] for leaf in leaves[asked]] for asked in leaves} for records in done]
            cells = cells_of(chosen, by_task[number], by_task[0] if number else None)
        described.append(_describe(name, path, done[number]) | {"cells": [asdict(cell) for cell in cells]})
        rows.append(_row(described[-1], cells))
    results = {"settings": settings, "checkpoints": described}
    markdown = results_markdown(chosen, rows, limit)
    if place.is_first:
        print(markdown)
        if folder is not None:
            folder.write_summary(results, markdown, results_csv(chosen, rows))
    return results


def _check_arguments(
    checkpoint_dirs: list[Path],
    suite: str | None,
    tasks: str | None,
    val_data: Path | None,
    log_samples: bool,
    out_dir: Path | None,
) -> None:
    if not checkpoint_dirs:
        raise UserError("no checkpoint; give --checkpoint_dir one or more folders")
    absolute = [path.resolve() for path in checkpoint_dirs]
    for path in checkpoint_dirs:
        if absolute.count(path.resolve()) > 1:
            raise UserError(f"{path} is given twice; name each checkpoint once")
    if suite and tasks:
        raise UserError(f"both --suite {suite} and --tasks {tasks}; give one of them")
    if not suite and not tasks and val_data is None:
        raise UserError("nothing to score; give --suite, such as quick, --tasks, such as piqa,mmlu, or --val_data")
    if log_samples and out_dir is None:
        raise UserError("--log_samples has nowhere to write; give --out_dir")


def _check_numbers(**numbers: int | None) -> None:
    for name, value in numbers.items():
        if value is not None and value < 1:
            raise UserError(f"--{name} is {value}; give 1 or more")


def _load(
    suite: Suite | None, data_dir: Path | None, num_fewshot: int | None, limit: int | None, scratch: Path, place: Place
) -> tuple[list[LoadedTask], dict[str, list[str]]]:
    """The suite's tasks with their rows, and lm-eval's names by what the suite calls them."""
    if suite is None:
        return [], {}
    _quieten()
    shots = {column.task: column.num_fewshot for column in suite.columns}
    resolved = TaskResolver(data_dir, num_fewshot, scratch).resolve(list(shots), shots)
    if place.is_first:
        count = len(resolved.names)
        print(f"reading the rows of {count} task{'s' * (count > 1)}", file=sys.stderr)
    loaded = load_tasks(resolved, limit)
    _check_metrics(suite, loaded, resolved.leaves)
    return loaded, resolved.leaves


def _check_metrics(suite: Suite, loaded: list[LoadedTask], leaves: dict[str, list[str]]) -> None:
    known = {task.name: list(task.task.aggregation()) for task in loaded}
    for column in suite.columns:
        metrics = known[leaves[column.task][0]]
        if column.metric and column.metric not in metrics:
            raise UserError(f"task {column.task!r} has no metric {column.metric!r}; it has {', '.join(metrics)}")


def _names(checkpoint_dirs: list[Path]) -> list[str]:
    """A short name each: the folder's, or its parent's for a run's ``final``; the whole path where those clash."""
    short = [path.parent.name if path.name == "final" else path.name for path in map(Path.absolute, checkpoint_dirs)]
    return [str(path) if short.count(name) > 1 else name for name, path in zip(short, checkpoint_dirs, strict=True)]


def _describe(name: str, checkpoint_dir: Path, records: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """A checkpoint's part of ``results.json``."""
    same = next(iter(records.values()))["identity"]
    tasks = {task: record for task, record in records.items() if task != HELD_OUT}
    return {
        "name": name,
        "path": str(checkpoint_dir),
        "weights_sha256": same["weights_sha256"],
        "tokenizer_sha256": same["tokenizer_sha256"],
        "n_layer": same["n_layer"],
        "parameters": same["parameters"],
        "manifest": read_manifest(checkpoint_dir),
        "held_out": records.get(HELD_OUT),
        "tasks": {task: record["scores"] for task, record in tasks.items()},
        "truncated": sum(record["truncated"] for record in tasks.values()),
        "seconds": round(sum(record["seconds"] for record in tasks.values()), 1),
    }


def _row(described: dict[str, Any], cells: list[Any]) -> ModelRow:
    loss = described["held_out"]
    held_out = (loss["loss"], loss["stderr"]) if loss else None
    return ModelRow(described["name"], described["n_layer"], cells, held_out, described["truncated"])


def _quieten() -> None:
    """lm-eval and datasets announce every step; ours are announced once."""
    import datasets

    datasets.disable_progress_bars()
    os.environ.setdefault("LOGLEVEL", "ERROR")
    for name in ("lm_eval", "lm-eval", "datasets"):
        logging.getLogger(name).setLevel(logging.ERROR)
