"""lm-eval tasks with their rows: checked before an hour is spent on them, or mirrored for offline use."""

import hashlib
import io
import itertools
import json
import logging
import re
import sys
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from lm_eval.api.task import Task

from inheritune_lit.errors import UserError
from inheritune_lit.evaluation.local_rows import write_rows
from inheritune_lit.evaluation.suite import MMLU, Suite
from inheritune_lit.evaluation.tasks import ResolvedTasks, mmlu_subjects, registered_config
from inheritune_lit.io.folders import new_folder
from inheritune_lit.io.manifest import sha256_file, write_manifest

logger = logging.getLogger(__name__)

Answer = tuple[int | list[int] | None, int | None]
"""Indices of the right choices, or of the only one, and how many there are; None where a task has no such."""


@dataclass(frozen=True)
class LoadedTask:
    """A task and where its rows are from."""

    name: str
    task: Task
    tag: str | list[str] | None  # the families lm-eval counts it to, such as MMLU's four groups
    identity: dict[str, Any]  # of its part of a result: name, version, hashes of description and rows, examples, split
    answers: list[Answer]  # of each row that will be scored


def load_tasks(resolved: ResolvedTasks, limit: int | None) -> list[LoadedTask]:
    """Read every task's rows and try the prompts of ``limit`` (None: all); rows that do not fit are a ``UserError``."""
    return [_load(name, spec, resolved, limit) for name, spec in resolved.each().items()]


def _load(name: str, spec: dict[str, Any], resolved: ResolvedTasks, limit: int | None) -> LoadedTask:
    rows = resolved.rows.get(name)
    try:
        with hidden_bars():
            task = resolved.manager.load([spec])["tasks"][name]
            docs = task.eval_docs
            split = task.config.test_split if task.has_test_docs() else task.config.validation_split
    except Exception as error:  # the data library and the tasks' own code raise whatever they like
        reason = "row 1 has an empty choice" if str(error) == "string index out of range" else told(error)
        if rows is not None:
            problem = f"the rows in {rows.folder} do not fit task {name!r} ({reason})"
            raise UserError(f"{problem}; give the rows of its own data set") from error
        problem = f"cannot get the rows of task {name!r} from the hub ({reason})"
        raise UserError(f"{problem}; give --data_dir a folder that has them") from error
    if len(docs) == 0:
        raise UserError(f"task {name!r} has no rows in split {split}")
    answers = _try_prompts(name, task, docs, f"in {rows.folder}" if rows else "from the hub", limit)
    num_fewshot = task.config.num_fewshot or 0
    _check_shots(name, task, num_fewshot)
    task.set_config(key="num_fewshot", value=num_fewshot)
    task.set_fewshot_seed(seed=1234)  # lm-eval's own
    entry = resolved.manager.task_index.get(name) if "group" in spec else None
    own = (entry.cfg.get("test_split") or entry.cfg.get("validation_split")) if entry else split
    if split != own:
        logger.info("%s: scored on %s rows, because there are none of the task's own split, %s", name, split, own)
    row_texts = (repr(sorted(doc.items())) for doc in docs)
    rows_sha256 = rows.sha256() if rows is not None and rows.splits else _sha256("".join(row_texts))
    identity = {
        "task": name,
        "task_version": task.VERSION if task.VERSION is not None else "unknown",
        "task_sha256": _description_sha256(task),
        "num_fewshot": num_fewshot,
        "split": split,
        "rows_sha256": rows_sha256,
    }
    return LoadedTask(name, task, entry.cfg.get("tag") if entry else None, identity, answers)


def _try_prompts(name: str, task: Task, docs: Any, where: str, limit: int | None) -> list[Answer]:
    """Make every prompt's text and find the right answer among the choices: what fails is a row of another task."""
    answers: list[Answer] = []
    wants_lists = None
    for number, doc in enumerate(itertools.islice(docs, limit), start=1):
        row = f"row {number} {where}"
        try:
            text, target = task.doc_to_text(doc), task.doc_to_target(doc)
            choices = task.doc_to_choice(doc) if task.OUTPUT_TYPE == "multiple_choice" else None
        except Exception as error:  # prompts are templates and code of lm-eval's
            problem = f"is of the wrong shape for task {name!r} ({told(error)})"
            raise UserError(f"{row} {problem}; its columns are {', '.join(map(str, doc))}") from error
        # Some tasks have the text as the index of a choice, and the answers as contexts.
        right = text if isinstance(text, int) else target
        if not callable(task.config.process_results):
            # lm-eval looks at the first row to see whether there are several right answers.
            wants_lists = isinstance(target, list) if wants_lists is None else wants_lists
            if wants_lists != isinstance(target, list):
                problem = f"has the answer {target!r} where row 1 of task {name!r} has another kind"
                raise UserError(f"{row} {problem}; fix it")
            if choices is not None:
                _check_choices(f"task {name!r}", row, choices, right if isinstance(right, list) else [right])
        if choices is None:
            answers.append((None, None))
            continue
        right = choices.index(right) if isinstance(right, str) and right in choices else right
        is_known = isinstance(right, int) or (isinstance(right, list) and all(isinstance(each, int) for each in right))
        answers.append((right if is_known else None, len(choices)))
    return answers


def _check_choices(task: str, row: str, choices: Any, answers: list[Any]) -> None:
    if not isinstance(choices, list) or None in choices:  # the data library fills in what other rows have
        raise UserError(f"{row} lacks a choice of {task}, it is of the wrong shape; fix it")
    if bad := [choice for choice in choices if not isinstance(choice, str) or not choice]:
        raise UserError(f"{row} has the choice {bad[0]!r} for {task}; give each a text")
    for answer in answers:
        is_index = isinstance(answer, int) and 0 <= answer < len(choices)
        if not (answer in choices if isinstance(answer, str) else is_index):
            raise UserError(f"{row} has answer {answer!r} of {len(choices)} for {task}; give rows that have answers")


def _check_shots(name: str, task: Task, num_fewshot: int) -> None:
    """Refuse more examples than there are rows, the one that is scored aside."""
    if num_fewshot < 0:
        raise UserError(f"task {name!r} takes {num_fewshot} examples; give 0 or more")
    few, config = getattr(task, "fewshot_cfg", None), task.config
    if num_fewshot and few is not None and hasattr(task, "sampler"):
        there = len(task.sampler.df) - (few.split == config.test_split)
        if num_fewshot > there:
            split = few.split or ("its own examples" if few.samples else config.training_split or "its rows")
            raise UserError(f"task {name!r} takes {num_fewshot} examples from {split}, which has {there}; give fewer")


def _description_sha256(task: Task) -> str:
    """Hash of all that makes prompts and scores: templates, code, metrics, filters, settings; rows have their own."""
    config = task.dump_config()
    for key in ("dataset_path", "dataset_name", "dataset_kwargs", "num_fewshot"):
        config.pop(key, None)
    if isinstance(config.get("metadata"), dict):
        config["metadata"] = {key: value for key, value in config["metadata"].items() if key != "config_source"}
    text = json.dumps(config, sort_keys=True, default=lambda value: task.config.serialize_function(value))
    return _sha256(re.sub(r" at 0x[0-9a-f]+", "", text))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def fetch_rows(data_dir: Path, chosen: Suite) -> dict[str, dict[str, int] | None]:
    """Mirror the rows of a suite from the hub into the folder that ``--data_dir`` reads.

    What the folder already has is left alone; each task appears in it whole or not at all. Returns the number of rows
    per split of each task, None for a task that was there already. An unknown task, or rows that the hub does not give,
    are a ``UserError``.
    """
    names = {each.task: list(mmlu_subjects().values()) if each.task == MMLU else [each.task] for each in chosen.columns}
    wanted = {task: [registered_config(name) for name in leaves] for task, leaves in names.items()}
    fetched: dict[str, dict[str, int] | None] = {}
    for task, configs in wanted.items():
        fetched[task] = None
        if (data_dir / task).is_dir():
            logger.info("%s: there already", task)
            continue
        splits: dict[str, list[dict[str, Any]]] = {}
        with new_folder(data_dir / task) as folder:
            for config in configs:  # MMLU's subjects come together in one file
                # What a task scores or takes examples from; training rows only where there is nothing else to score.
                scored = config.get("test_split") or config.get("validation_split") or config.get("training_split")
                extra = {"subject": config["dataset_name"]} if task == MMLU else {}
                for split in dict.fromkeys(filter(None, [scored, config.get("fewshot_split")])):
                    splits.setdefault(split, []).extend({**row, **extra} for row in _rows(task, config, split))
            write_rows(folder, splits)
            files = {path.name: sha256_file(path) for path in sorted(folder.glob("*.jsonl"))}
            source = {"task": task, "dataset_path": configs[0]["dataset_path"], "files": files}
            write_manifest(folder, "task_rows", source)
        fetched[task] = {split: len(rows) for split, rows in splits.items()}
        logger.info("%s: %s", task, ", ".join(f"{len(rows)} rows of {split}" for split, rows in splits.items()))
    return fetched


def _rows(task: str, config: dict[str, Any], split: str) -> Any:
    import datasets

    datasets.disable_progress_bars()
    path, name = config["dataset_path"], config.get("dataset_name")
    try:
        with hidden_bars():
            try:
                return datasets.load_dataset(path, name, split=split, **(config.get("dataset_kwargs") or {}))
            except RuntimeError as error:
                if "script" not in str(error):
                    raise
                # The hub's branch with the rows of data sets whose loading scripts are refused.
                return datasets.load_dataset(path, name, split=split, revision="refs/convert/parquet")
    except Exception as error:  # the data library raises whatever its parts do
        problem = f"cannot fetch the {split} rows of task {task!r} ({path}): {told(error)}"
        raise UserError(f"{problem}; try again, or copy them by hand") from error


def hidden_bars() -> redirect_stderr[TextIO]:
    """Keeps the bars of lm-eval and the data library from a stderr where nobody sees them move."""
    return redirect_stderr(sys.stderr if sys.stderr.isatty() else io.StringIO())


def told(error: Exception) -> str:
    """What an error of lm-eval, the data library or a task's own code says, in a line of bounded length."""
    message = " ".join(str(error).split())[:200] or type(error).__name__
    return f"there is no {message}" if isinstance(error, KeyError) else message
