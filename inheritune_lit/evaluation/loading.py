"""lm-eval tasks with their rows, checked before an hour is spent on them."""

import hashlib
import io
import itertools
import logging
import sys
from contextlib import redirect_stderr
from dataclasses import dataclass
from typing import Any

from lm_eval.api.task import Task

from inheritune_lit.errors import UserError
from inheritune_lit.evaluation.local_rows import LocalRows
from inheritune_lit.evaluation.tasks import ResolvedTasks

logger = logging.getLogger(__name__)

FEWSHOT_SEED = 1234
"""lm-eval's own."""


@dataclass(frozen=True)
class LoadedTask:
    """A task and where its rows are from.

    Attributes:
        split: the split that is scored.
        rows_sha256: of the local files, or of the text of all rows where they are the hub's.
        tag: the families lm-eval counts it to, such as MMLU's four groups.
    """

    name: str
    task: Task
    num_fewshot: int
    split: str
    rows_sha256: str
    tag: str | list[str] | None

    def describe(self) -> dict[str, Any]:
        """What identifies the task's part of a result."""
        return {
            "task": self.name,
            "task_version": self.task.VERSION if self.task.VERSION is not None else "unknown",
            "num_fewshot": self.num_fewshot,
            "split": self.split,
            "rows_sha256": self.rows_sha256,
        }


def load_tasks(resolved: ResolvedTasks, limit: int | None) -> list[LoadedTask]:
    """Read the rows of every task and try its prompt on them.

    Args:
        resolved: from ``TaskResolver``.
        limit: rows per task that will be scored; all when None.

    Raises:
        UserError: rows that cannot be had or are of the wrong shape.
    """
    return [_load(name, spec, resolved, limit) for name, spec in resolved.each().items()]


def _load(name: str, spec: dict[str, Any], resolved: ResolvedTasks, limit: int | None) -> LoadedTask:
    rows = resolved.rows.get(name)
    try:
        # lm-eval and the data library draw bars even where nobody sees them move.
        with redirect_stderr(sys.stderr if sys.stderr.isatty() else io.StringIO()):
            task = resolved.manager.load([spec])["tasks"][name]
            docs = task.eval_docs
            split = task.config.test_split if task.has_test_docs() else task.config.validation_split
    except Exception as error:  # the data library and the tasks' own code raise whatever they like
        raise UserError(_unusable(name, rows, error)) from error
    if len(docs) == 0:
        raise UserError(f"task {name!r} has no rows in split {split}")
    _try_prompts(name, task, docs, rows, limit)
    num_fewshot = task.config.num_fewshot or 0
    task.set_config(key="num_fewshot", value=num_fewshot)
    task.set_fewshot_seed(seed=FEWSHOT_SEED)
    entry = resolved.manager.task_index.get(name)
    tag = entry.cfg.get("tag") if entry else None
    own = (entry.cfg.get("test_split") or entry.cfg.get("validation_split")) if entry else split
    if split != own:
        logger.info("%s: scored on %s rows, because there are none of the task's own split, %s", name, split, own)
    return LoadedTask(name, task, num_fewshot, split, _sha256(docs, rows), tag)


def _unusable(name: str, rows: LocalRows | None, error: Exception) -> str:
    told = " ".join(str(error).split())[:200] or type(error).__name__
    if rows is None:
        return f"cannot get the rows of task {name!r} from the hub ({told}); give --data_dir a folder that has them"
    return f"the rows in {rows.folder} do not fit task {name!r} ({told}); give the rows of its own data set"


def _try_prompts(name: str, task: Task, docs: Any, rows: LocalRows | None, limit: int | None) -> None:
    """Make every prompt's text and find the right answer among the choices: what fails is a row of another task."""
    where = f"in {rows.folder}" if rows else "from the hub"
    for number, doc in enumerate(itertools.islice(docs, limit), start=1):
        try:
            text, target = task.doc_to_text(doc), task.doc_to_target(doc)
            choices = task.doc_to_choice(doc) if task.OUTPUT_TYPE == "multiple_choice" else None
        except Exception as error:  # prompts are templates and code of lm-eval's
            told = " ".join(str(error).split())[:150] or type(error).__name__
            raise UserError(
                f"row {number} {where} is of the wrong shape for task {name!r} ({told}); "
                f"its columns are {', '.join(map(str, doc))}"
            ) from error
        # Some tasks have the text as the index of a choice, and the answers as contexts.
        if choices is not None and None in choices:  # the data library fills in what other rows have
            raise UserError(f"row {number} {where} lacks a choice of task {name!r}, it is of the wrong shape; fix it")
        indexed = isinstance(text, str) and isinstance(target, int)
        if choices is not None and indexed and not 0 <= target < len(choices):
            raise UserError(
                f"row {number} {where} has answer {target} of {len(choices)} for task {name!r}; "
                "give rows that have answers"
            )


def _sha256(docs: Any, rows: LocalRows | None) -> str:
    if rows is not None and rows.splits:
        return rows.sha256(sorted(rows.splits))
    digest = hashlib.sha256()
    for doc in docs:
        digest.update(repr(sorted(doc.items(), key=lambda item: item[0])).encode())
    return digest.hexdigest()
