"""Rows of tasks from the hub into the folder that ``--data_dir`` reads, for a machine without a network."""

import io
import logging
import sys
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

from inheritune_lit.errors import UserError
from inheritune_lit.evaluation import paper_tasks as mmlu
from inheritune_lit.evaluation.local_rows import write_rows
from inheritune_lit.evaluation.suite import Suite
from inheritune_lit.evaluation.tasks import registered_config, task_manager
from inheritune_lit.io.folders import new_folder
from inheritune_lit.io.manifest import sha256_file, write_manifest

logger = logging.getLogger(__name__)

_PARQUET = "refs/convert/parquet"
"""The hub's branch with the rows of data sets whose loading scripts are refused."""


def fetch_rows(data_dir: Path, chosen: Suite) -> dict[str, dict[str, int] | None]:
    """Mirror the rows of a suite; what the folder already has is left alone.

    Args:
        data_dir: the folder; each task appears in it whole or not at all.
        chosen: what to mirror.

    Returns:
        Rows per split of each task, None for a task that was there already.

    Raises:
        UserError: an unknown task, or rows that the hub does not give.
    """
    manager = task_manager()
    wanted: dict[str, list[dict[str, Any]]] = {}
    for column in chosen.columns:
        if column.task == mmlu.MMLU:
            wanted[mmlu.MMLU] = [registered_config(manager, name) for name in mmlu.subjects(manager).values()]
        else:
            wanted[column.task] = [registered_config(manager, column.task)]
    fetched: dict[str, dict[str, int] | None] = {}
    for task, configs in wanted.items():
        fetched[task] = None
        if (data_dir / task).is_dir():
            logger.info("%s: there already", task)
            continue
        with new_folder(data_dir / task) as staging:
            fetched[task] = rows = _mirror(task, configs, staging)
        logger.info("%s: %s", task, ", ".join(f"{count} rows of {split}" for split, count in rows.items()))
    return fetched


def _mirror(task: str, configs: list[dict[str, Any]], folder: Path) -> dict[str, int]:
    """Write one task's splits and return how many rows each has; MMLU's subjects come together in one file."""
    splits: dict[str, list[dict[str, Any]]] = {}
    for config in configs:
        for split in _needed(config):
            rows = _rows(task, config, split)
            if task == mmlu.MMLU:
                rows = [{**row, "subject": config["dataset_name"]} for row in rows]
            splits.setdefault(split, []).extend(rows)
    for split, rows in splits.items():
        write_rows(folder / f"{split}.jsonl", rows)
    origin = {"task": task, "dataset_path": configs[0]["dataset_path"]}
    origin["files"] = {path.name: sha256_file(path) for path in sorted(folder.glob("*.jsonl"))}
    write_manifest(folder, "task_rows", origin)
    return {split: len(rows) for split, rows in splits.items()}


def _needed(config: dict[str, Any]) -> list[str]:
    """Splits a task scores or takes examples from; training rows only where there is nothing else to score."""
    scored = config.get("test_split") or config.get("validation_split") or config.get("training_split")
    return list(dict.fromkeys(filter(None, [scored, config.get("fewshot_split")])))


def _rows(task: str, config: dict[str, Any], split: str) -> list[dict[str, Any]]:
    import datasets

    datasets.disable_progress_bars()
    path, name = config["dataset_path"], config.get("dataset_name")
    kwargs = config.get("dataset_kwargs") or {}
    try:
        with redirect_stderr(sys.stderr if sys.stderr.isatty() else io.StringIO()):
            try:
                rows = datasets.load_dataset(path, name, split=split, **kwargs)
            except RuntimeError as error:
                if "script" not in str(error):
                    raise
                rows = datasets.load_dataset(path, name, split=split, revision=_PARQUET)
    except Exception as error:  # the data library raises whatever its parts do
        told = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"cannot fetch the {split} rows of task {task!r} ({path}): {told}; try again, or copy them by hand"
        ) from error
    return [dict(row) for row in rows]
