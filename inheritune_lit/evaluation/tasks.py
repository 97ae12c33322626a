"""Task names into lm-eval tasks, on the hub's rows or on local ones."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval.tasks import TaskManager

from inheritune_lit.errors import UserError, suggest
from inheritune_lit.evaluation.local_rows import LocalRows, LocalTaskRows
from inheritune_lit.evaluation.suite import MMLU
from inheritune_lit.evaluation.task_files import FileTask, read_task_file, use_sandbox


@dataclass(frozen=True)
class ResolvedTasks:
    """Tasks for lm-eval.

    ``specs`` are one inline group of registered tasks, because their changes merge only in one, and tasks from files,
    because those load only outside of one.
    """

    specs: list[dict[str, Any]]  # what to pass as ``tasks``
    manager: TaskManager  # and as ``task_manager``
    leaves: dict[str, list[str]]  # names by what was asked for: a file's path becomes its task, "mmlu" its subjects
    rows: dict[str, LocalRows]  # files of the tasks that have local ones

    def each(self) -> dict[str, dict[str, Any]]:
        """What to pass for one task alone, by its name in lm-eval's results."""
        alone = {}
        for spec in self.specs:
            for task in spec["task"] if "group" in spec else [spec]:
                alone[task["task"]] = {**spec, "task": [task]} if "group" in spec else task
        return alone


class TaskResolver:
    """Turns what a user asks for into lm-eval task descriptions.

    Prompts, metrics and few-shot selection stay the registered task's; only the source of the rows changes.

    ``data_dir`` has local rows, see ``find_rows`` (MMLU's subjects together in ``mmlu/``, told apart by the column
    ``subject``); None is the hub. ``num_fewshot`` examples are in the prompt, when None the task's own number, 5 for
    MMLU. ``scratch`` is an existing folder for rows that have to be rewritten and for the data library's cache.
    """

    def __init__(self, data_dir: Path | None, num_fewshot: int | None, scratch: Path) -> None:
        if data_dir is not None and not data_dir.is_dir():
            raise UserError(f"no folder of task rows at {data_dir}; give --data_dir a folder of <task>/<split>.jsonl")
        self._num_fewshot, self._cache, self._data_dir = num_fewshot, str(scratch / "cache"), data_dir
        use_sandbox()
        self._rows: dict[str, LocalRows] = {}
        self._subjects = mmlu_subjects()
        self._local_rows = LocalTaskRows(data_dir, scratch, self._subjects) if data_dir else None

    def resolve(self, asked: list[str], shots: dict[str, int | None] | None = None) -> ResolvedTasks:
        """Descriptions of tasks by name or YAML file, "mmlu" as its subjects; one that is missing is a ``UserError``.

        ``shots`` are examples in the prompt for some of them; the resolver's own number goes before.
        """
        registered: dict[str, dict[str, Any]] = {}
        own: dict[str, dict[str, Any]] = {}
        leaves: dict[str, list[str]] = {}
        for name in asked:
            number = self._num_fewshot if self._num_fewshot is not None else (shots or {}).get(name)
            if name.endswith((".yaml", ".yml")):
                described = read_task_file(Path(name), task_manager(), self._data_dir)
            else:
                names = [name]
                if name == MMLU:
                    present = self._local_rows.subjects() if self._local_rows else self._subjects
                    names = sorted(self._subjects[subject] for subject in present)
                described = [FileTask(each, {}, each, None) for each in names]
            leaves[name] = [task.name for task in described]
            for task in described:
                spec = self._described(task, number)
                other = registered.get(task.name) or own.get(task.name)
                if other not in (None, spec) or leaves[name].count(task.name) > 1:
                    raise UserError(f"{name} has a task {task.name!r}, and another has that name; rename one of them")
                (own if task.base is None else registered)[task.name] = spec
        group = [{"group": "inheritune", "task": list(registered.values())}] if registered else []
        return ResolvedTasks([*group, *own.values()], task_manager(), leaves, dict(self._rows))

    def _described(self, task: FileTask, num_fewshot: int | None) -> dict[str, Any]:
        """What to load for a task: lm-eval's with what a file changes of it, or a file's own."""
        config = dict(task.config)
        if num_fewshot is not None:
            config["num_fewshot"] = num_fewshot
        if task.base is not None and "dataset_path" not in config:
            return self._registered(task.base, config.pop("num_fewshot", None)) | config
        if task.rows is not None:
            self._rows[task.name] = task.rows
        config["dataset_kwargs"] = {**(config.get("dataset_kwargs") or {}), "cache_dir": self._cache}
        return config

    def _registered(self, name: str, num_fewshot: int | None) -> dict[str, Any]:
        """A registered task, on local files where there is a folder of them."""
        config = registered_config(name)
        task: dict[str, Any] = {"task": name}
        is_mmlu = name.startswith("mmlu_") and config.get("dataset_path") == "cais/mmlu"
        if num_fewshot is not None or is_mmlu:
            task["num_fewshot"] = 5 if num_fewshot is None else num_fewshot
        if self._local_rows is None:
            return task
        found, shots = self._local_rows, task.get("num_fewshot", config.get("num_fewshot"))
        rows = self._rows[name] = found.of_subject(config["dataset_name"]) if is_mmlu else found.of_task(name, config)
        wanted = {kind: config.get(f"{kind}_split") for kind in ("training", "validation", "test", "fewshot")}
        splits = {kind: split if split in rows.splits else None for kind, split in wanted.items()}
        if splits["test"] is None and splits["validation"] is None:
            suffix = "jsonl" if rows.builder == "json" else rows.builder
            named = [f"{split}.{suffix}" for split in (wanted["test"], wanted["validation"]) if split]
            raise UserError(f"no local rows of task {name!r}: {rows.folder} has none of {', '.join(named)}; add one")
        if splits["fewshot"] is None and (config.get("fewshot_config") or {}).get("samples"):
            shots = 0  # the task carries its examples itself
        if shots and splits["fewshot"] is None and splits["training"] is None:
            split = wanted["fewshot"] or wanted["training"]
            raise UserError(f"task {name!r} takes {shots} examples from split {split}: {rows.folder} has none")
        files = {split: [str(path.resolve()) for path in rows.splits[split]] for split in filter(None, splits.values())}
        kwargs = {"data_files": files, "cache_dir": self._cache}
        source = {"dataset_path": rows.builder, "dataset_name": None, "dataset_kwargs": kwargs}
        return task | source | {f"{kind}_split": split for kind, split in splits.items()}


@functools.cache
def task_manager() -> TaskManager:
    """lm-eval's registered tasks; reading their thousands of files takes seconds."""
    return TaskManager()


def mmlu_subjects() -> dict[str, str]:
    """MMLU's lm-eval tasks by subject."""
    entries = {name: entry for name, entry in task_manager().task_index.items() if name.startswith("mmlu_")}
    own = {name: entry for name, entry in entries.items() if entry.yaml_path and "dataset_name" in entry.cfg}
    return {entry.cfg["dataset_name"]: name for name, entry in own.items() if entry.yaml_path.parent.name == "default"}


def registered_config(name: str) -> dict[str, Any]:
    """A registered task's description; a ``UserError`` where there is none of this name, or it is a group."""
    tasks, entry = task_manager().all_subtasks, task_manager().task_index.get(name)
    if entry is None:
        raise UserError(f"unknown task {name!r}; {suggest(name, tasks, '`lm-eval ls tasks` lists them', most=3)}")
    if name not in tasks:
        raise UserError(f"{name!r} is a group of tasks; name its tasks instead")
    return entry.cfg
