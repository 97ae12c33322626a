"""Task names into lm-eval tasks, on the hub's rows or on local ones."""

import difflib
import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from lm_eval.tasks import TaskManager

from inheritune_lit.errors import UserError
from inheritune_lit.evaluation import paper_tasks as mmlu
from inheritune_lit.evaluation.local_rows import LocalRows, LocalTaskRows


@dataclass(frozen=True)
class ResolvedTasks:
    """Tasks for lm-eval.

    Attributes:
        names: of the tasks, as they stand in lm-eval's results.
        specs: what to pass as ``tasks``: one inline group of registered tasks, because their changes merge only in one,
            and tasks from files, because those load only outside of one.
        manager: what to pass as ``task_manager``.
        leaves: names by what was asked for: a file's path becomes its task, "mmlu" its subjects.
        rows: files of the tasks that have local rows.
    """

    names: list[str]
    specs: list[dict[str, Any]]
    manager: TaskManager
    leaves: dict[str, list[str]]
    rows: dict[str, LocalRows] = field(default_factory=dict)

    def each(self) -> dict[str, dict[str, Any]]:
        """What to pass for one task alone, by its name."""
        alone = {}
        for spec in self.specs:
            inner = spec["task"] if "group" in spec else [spec]
            for task in inner:
                alone[task["task"]] = {"group": "inheritune", "task": [task]} if "group" in spec else task
        return alone


class TaskResolver:
    """Turns what a user asks for into lm-eval task descriptions.

    Prompts, metrics and few-shot selection stay the registered task's; only the source of the rows changes.

    Args:
        data_dir: folder of local rows, see ``rows.find_rows`` (MMLU's subjects together in ``mmlu/``, told apart by the
            column ``subject``); None for the hub.
        num_fewshot: examples in the prompt; None for the task's own number, 5 for MMLU.
        scratch: an existing folder for rows that have to be rewritten and for the data library's cache.
    """

    def __init__(self, data_dir: Path | None, num_fewshot: int | None, scratch: Path) -> None:
        if data_dir is not None and not data_dir.is_dir():
            raise UserError(f"no folder of task rows at {data_dir}; give --data_dir a folder of <task>/<split>.jsonl")
        self._num_fewshot, self._scratch = num_fewshot, scratch
        self._rows: dict[str, LocalRows] = {}
        self.manager = task_manager()
        self._mmlu = mmlu.subjects(self.manager)
        self._local_rows = LocalTaskRows(data_dir, scratch, list(self._mmlu)) if data_dir else None

    def resolve(self, asked: list[str], shots: dict[str, int | None] | None = None) -> ResolvedTasks:
        """Descriptions of the tasks asked for; "mmlu" becomes its subjects.

        Args:
            asked: names, or YAML files of tasks.
            shots: examples in the prompt for some of them; the resolver's own number goes before.

        Raises:
            UserError: an unknown task, or a task whose local rows are missing.
        """
        registered, own, leaves = {}, {}, {}
        for name in asked:
            number = self._num_fewshot if self._num_fewshot is not None else (shots or {}).get(name)
            if name.endswith((".yaml", ".yml")):
                task = self._from_file(Path(name), number)
                own[task["task"]] = task
                leaves[name] = [task["task"]]
                continue
            leaves[name] = self._subject_tasks() if name == mmlu.MMLU else [name]
            for leaf in leaves[name]:
                registered[leaf] = self._registered(leaf, number)
        group = [{"group": "inheritune", "task": list(registered.values())}] if registered else []
        return ResolvedTasks([*registered, *own], [*group, *own.values()], self.manager, leaves, dict(self._rows))

    def _registered(self, name: str, num_fewshot: int | None) -> dict[str, Any]:
        config = registered_config(self.manager, name)
        is_mmlu = mmlu.is_subject(name, config)
        task: dict[str, Any] = {"task": name}
        if num_fewshot is not None or is_mmlu:
            task["num_fewshot"] = mmlu.FEWSHOT if num_fewshot is None else num_fewshot
        if self._local_rows is not None:
            found = self._local_rows
            rows = found.of_subject(config["dataset_name"]) if is_mmlu else found.of_task(name, config)
            self._rows[name] = rows
            task |= self._local(name, rows, config, task.get("num_fewshot", config.get("num_fewshot")))
        return task

    def _local(self, name: str, rows: LocalRows, config: dict[str, Any], num_fewshot: int | None) -> dict[str, Any]:
        """What makes the registered task read local files."""
        wanted = {kind: config.get(f"{kind}_split") for kind in ("training", "validation", "test", "fewshot")}
        splits = {kind: split if split in rows.splits else None for kind, split in wanted.items()}
        if splits["test"] is None and splits["validation"] is None:
            suffix = "jsonl" if rows.builder == "json" else rows.builder
            named = [f"{split}.{suffix}" for split in (wanted["test"], wanted["validation"]) if split]
            raise UserError(f"no local rows of task {name!r}: {rows.folder} has none of {', '.join(named)}; add one")
        if num_fewshot and splits["fewshot"] is None and splits["training"] is None:
            split = wanted["fewshot"] or wanted["training"]
            raise UserError(f"task {name!r} takes {num_fewshot} examples from split {split}: {rows.folder} has none")
        files = {split: [str(path.resolve()) for path in rows.splits[split]] for split in filter(None, splits.values())}
        return {
            "dataset_path": rows.builder,
            "dataset_name": None,
            "dataset_kwargs": {"data_files": files, "cache_dir": str(self._scratch / "cache")},
            **{f"{kind}_split": split for kind, split in splits.items()},
        }

    def _subject_tasks(self) -> list[str]:
        """Names of MMLU's 57 tasks, or of those that have local rows."""
        present = self._mmlu.keys() if self._local_rows is None else self._local_rows.subjects()
        return sorted(self._mmlu[subject] for subject in present)

    def _from_file(self, path: Path, num_fewshot: int | None) -> dict[str, Any]:
        """A task described by a YAML file; relative data files are looked for beside it."""
        try:
            task = yaml.safe_load(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(f"cannot read the task file {path}: {error.strerror}") from error
        except yaml.YAMLError as error:
            raise UserError(f"{path} is not a task file: {' '.join(str(error).split())}") from error
        if not isinstance(task, dict) or "task" not in task:
            raise UserError(f"{path} is not a task file: it has no field `task`")
        kwargs = task.setdefault("dataset_kwargs", {})
        files = kwargs.get("data_files", {})
        for split, file in files.items():
            if not (path.parent / file).is_file():
                raise UserError(f"{path} names {file} for split {split}, which is not beside it")
            files[split] = str((path.parent / file).resolve())
        kwargs["cache_dir"] = str(self._scratch / "cache")
        if num_fewshot is not None:
            task["num_fewshot"] = num_fewshot
        self._rows[task["task"]] = LocalRows(path.parent, "json", {s: [Path(file)] for s, file in files.items()})
        return task


@functools.cache
def task_manager() -> TaskManager:
    """lm-eval's registered tasks; reading their thousands of files takes seconds."""
    return TaskManager()


def registered_config(manager: TaskManager, name: str) -> dict[str, Any]:
    """A registered task's description.

    Raises:
        UserError: there is none of this name, or it is a group.
    """
    entry = manager.task_index.get(name)
    if entry is None:
        near = difflib.get_close_matches(name, manager.all_subtasks, n=3)
        meant = f"; did you mean {', '.join(near)}?" if near else "; `lm-eval ls tasks` lists them"
        raise UserError(f"unknown task {name!r}{meant}")
    if name not in manager.all_subtasks:
        raise UserError(f"{name!r} is a group of tasks; name its tasks instead")
    return entry.cfg
