"""Task names into lm-eval tasks, on the hub's rows or on local ones."""

import difflib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from lm_eval.tasks import TaskManager

from inheritune_lit.errors import UserError

MMLU, MMLU_PREFIX, MMLU_FEWSHOT = "mmlu", "mmlu_", 5


@dataclass(frozen=True)
class ResolvedTasks:
    """Tasks for ``lm_eval.simple_evaluate``.

    Attributes:
        names: of the tasks, as they stand in lm-eval's results.
        specs: what to pass as ``tasks``.
        manager: what to pass as ``task_manager``; making another takes seconds.
    """

    names: list[str]
    specs: list[dict[str, Any]]
    manager: TaskManager | None


class TaskResolver:
    """Turns what a user asks for into lm-eval task descriptions.

    Prompts, metrics and few-shot selection stay the registered task's; only the source of the rows changes.

    Args:
        data_dir: folder of local rows, ``<task>/<split>.jsonl`` with the columns of the task's hub data set (MMLU's
            subjects together in ``mmlu/``, told apart by the column ``subject``); None for the hub.
        num_fewshot: examples in the prompt; None for the task's own number, 5 for MMLU.
        scratch: an existing folder for rows that have to be rewritten and for the data library's cache.
    """

    def __init__(self, data_dir: Path | None, num_fewshot: int | None, scratch: Path) -> None:
        if data_dir is not None and not data_dir.is_dir():
            raise UserError(f"no folder of task rows at {data_dir}; give --data_dir a folder of <task>/<split>.jsonl")
        self._data_dir, self._num_fewshot, self._scratch = data_dir, num_fewshot, scratch
        self._mmlu_splits: dict[str, dict[str, list[str]]] = {}
        self.manager = TaskManager()

    def resolve(self, asked: list[str]) -> "ResolvedTasks":
        """Descriptions of the tasks asked for; "mmlu" becomes its subjects.

        Raises:
            UserError: an unknown task, or a task whose local rows are missing.
        """
        registered, own = [], []
        for name in asked:
            if name.endswith((".yaml", ".yml")):
                own.append(self._from_file(Path(name)))
            elif name == MMLU:
                registered += [self._registered(subject) for subject in self._mmlu_subjects()]
            else:
                registered.append(self._registered(name))
        # Changes of registered tasks merge only inside a group, and new tasks load only outside of one.
        group = [{"group": "inheritune", "task": registered}] if registered else []
        return ResolvedTasks([task["task"] for task in (*registered, *own)], group + own, self.manager)

    def _registered(self, name: str) -> dict[str, Any]:
        entry = self.manager.task_index.get(name)
        if entry is None:
            near = difflib.get_close_matches(name, self.manager.all_subtasks, n=3)
            meant = f"; did you mean {', '.join(near)}?" if near else "; `lm-eval ls tasks` lists them"
            raise UserError(f"unknown task {name!r}{meant}")
        if name not in self.manager.all_subtasks:
            raise UserError(f"{name!r} is a group of tasks; name its tasks instead")
        is_mmlu = name.startswith(MMLU_PREFIX) and entry.cfg["dataset_path"] == "cais/mmlu"
        task: dict[str, Any] = {"task": name}
        if self._num_fewshot is not None or is_mmlu:
            task["num_fewshot"] = MMLU_FEWSHOT if self._num_fewshot is None else self._num_fewshot
        if self._data_dir is not None:
            folder = self._mmlu_rows(entry.cfg["dataset_name"]) if is_mmlu else self._data_dir / name
            task |= self._local_rows(name, folder, entry.cfg)
        return task

    def _local_rows(self, name: str, folder: Path, config: dict[str, Any]) -> dict[str, Any]:
        """What makes the registered task read the jsonl files of a folder."""
        if not folder.is_dir():
            raise UserError(f"no local rows of task {name!r}: {folder} is missing; put <split>.jsonl files there")
        files = {path.stem: str(path.resolve()) for path in sorted(folder.glob("*.jsonl"))}
        splits = {kind: config.get(f"{kind}_split") for kind in ("training", "validation", "test", "fewshot")}
        splits = {kind: split if split in files else None for kind, split in splits.items()}
        if splits["test"] is None and splits["validation"] is None:
            wanted = [config.get(f"{kind}_split") for kind in ("test", "validation")]
            raise UserError(
                f"no local rows of task {name!r}: {folder} has none of "
                f"{', '.join(f'{split}.jsonl' for split in wanted if split)}; add one"
            )
        return {
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": files, "cache_dir": str(self._scratch / "cache")},
            **{f"{kind}_split": split for kind, split in splits.items()},
        }

    def _mmlu_subjects(self) -> list[str]:
        """Names of MMLU's 57 tasks, or of those that have local rows."""
        registered = {
            entry.cfg["dataset_name"]: name
            for name, entry in self.manager.task_index.items()
            if name.startswith(MMLU_PREFIX)
            and entry.yaml_path is not None
            and entry.yaml_path.parent.name == "default"
            and "dataset_name" in entry.cfg
        }
        if self._data_dir is None:
            return sorted(registered.values())
        return sorted(registered[subject] for subject in self._mmlu_split("test") if subject in registered)

    def _mmlu_split(self, split: str) -> dict[str, list[str]]:
        """Local rows of MMLU by subject, as lines."""
        if split in self._mmlu_splits:
            return self._mmlu_splits[split]
        path = self._data_dir / MMLU / f"{split}.jsonl"
        if not path.is_file():
            raise UserError(f"no local rows of task 'mmlu': {path} is missing; put MMLU's rows there")
        subjects: dict[str, list[str]] = {}
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                try:
                    subjects.setdefault(json.loads(line)["subject"], []).append(line)
                except (ValueError, KeyError, TypeError) as error:
                    raise UserError(f"{path}:{number} is no MMLU row with a subject ({error!r}); mend it") from error
        self._mmlu_splits[split] = subjects
        return subjects

    def _mmlu_rows(self, subject: str) -> Path:
        """A folder with one subject's rows."""
        folder = self._scratch / MMLU / subject
        if not folder.exists():
            rows = {split: self._mmlu_split(split).get(subject) for split in ("test", "dev")}
            for split, lines in rows.items():
                if lines is None:
                    path = self._data_dir / MMLU / f"{split}.jsonl"
                    raise UserError(f"{path} has no row of subject {subject!r}; add its rows or leave the subject out")
            folder.mkdir(parents=True)
            for split, lines in rows.items():
                (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
        return folder

    def _from_file(self, path: Path) -> dict[str, Any]:
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
        if self._num_fewshot is not None:
            task["num_fewshot"] = self._num_fewshot
        return task
