"""Task files as lm-eval takes them: they run no code, open nothing elsewhere, and their templates have an end."""

import re
import resource
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import lm_eval.tasks
from jinja2 import StrictUndefined, Template
from jinja2.sandbox import SandboxedEnvironment
from lm_eval.api.registry import AGGREGATION_REGISTRY, METRIC_REGISTRY
from lm_eval.config.group import GroupConfig
from lm_eval.config.task import FewshotConfig, TaskConfig
from lm_eval.prompts import PROMPT_REGISTRY
from lm_eval.tasks import TaskManager
from lm_eval.tasks._index import Kind
from lm_eval.tasks._yaml_loader import load_yaml

from inheritune_lit.errors import UserError, suggest
from inheritune_lit.evaluation.local_rows import LocalRows
from inheritune_lit.io.machine import handle_signals
from inheritune_lit.io.reading import read_yaml

Config = dict[str, Any]

_OWN = Path(lm_eval.tasks.__file__).resolve().parent
_REMEDY = "write it as lm-eval's task guide says"
_BUILDERS = ("json", "csv", "parquet", "text")
_PLAIN = ("data_files", "data_dir", "revision", "field", "delimiter", "sep", "column_names", "header", "columns")
"""Arguments of the data library that neither write nor run anything."""
_DROPPED = ("cache_dir", "trust_remote_code")
_TASK_FIELDS = [field.name for field in fields(TaskConfig)]
_GROUP_FIELDS = [field.name for field in fields(GroupConfig)]
_MOST_REPEATS = 1024
_BYTES = 1 << 27  # memory that a template may take
_SECONDS = 10  # seconds that a template may take


@dataclass(frozen=True)
class FileTask:
    """A task that a file describes: the whole of it, or what it changes of lm-eval's task that ``base`` names."""

    name: str
    config: Config
    base: str | None
    rows: LocalRows | None  # its local ones, None where they are the hub's or the base's


def read_task_file(path: Path, manager: TaskManager, data_dir: Path | None) -> list[FileTask]:
    """The tasks of a file or its group, which name what is beside it or in ``data_dir``; others are a ``UserError``."""
    if not path.exists():
        raise UserError(f"cannot read the task file {path}: there is none; give the path of one")
    roots = [folder.resolve() for folder in (path.parent, data_dir) if folder is not None]
    return list(_Reader(manager, path, roots).tasks(path, {}))


class _Reader:
    """Reads one task file; everything it names lies in ``roots``."""

    def __init__(self, manager: TaskManager, path: Path, roots: list[Path]) -> None:
        self._manager, self._path, self._roots = manager, path, roots
        self._open: list[Path] = []

    def tasks(self, path: Path, overrides: Config) -> Iterator[FileTask]:
        """The tasks of a file, changed by the group that names it."""
        if path.resolve() in self._open:
            raise UserError(f"{path} names itself through {self._path}; take that out")
        self._open.append(path.resolve())
        config = self._config(path, [])
        if "group" in config and isinstance(config.get("task"), list):
            yield from self._group(path, config, overrides)
        else:
            yield self._task(path, config | overrides, None)
        self._open.pop()

    def _config(self, path: Path, above: Sequence[Path]) -> Config:
        """Content of a file with what it includes, in lm-eval's order."""
        if path.resolve() in above:
            raise UserError(f"{path} includes itself; take the `include` out")
        if path.resolve().is_relative_to(_OWN):
            return dict(load_yaml(path, resolve_func=True))
        try:
            config = read_yaml(path, "a task file", _REMEDY)
        except UserError as error:
            if "!function" not in str(error):
                raise
            problem = f"{path} names Python code (!function), which only lm-eval's own tasks may"
            raise UserError(f"{problem}; write a template instead") from error
        merged: Config = {}
        for name in _listed(config.pop("include", None)):
            included = self._config(self._inside(path, name, "file"), [*above, path.resolve()])
            included.pop("task_list", None)
            merged |= included
        return merged | self._with_files(path, config)

    def _with_files(self, path: Path, config: Config) -> Config:
        """A description whose data files are found."""
        if (kwargs := config.get("dataset_kwargs")) is not None and not isinstance(kwargs, dict):
            raise UserError(f"{path}: dataset_kwargs is {kwargs!r}; give names and values, such as data_files")
        if kwargs and config.get("dataset_path", "json") in _BUILDERS and kwargs.get("data_files"):
            return config | {"dataset_kwargs": {**kwargs, "data_files": self._files(path, kwargs["data_files"])}}
        return config

    def _group(self, path: Path, config: Config, overrides: Config) -> Iterator[FileTask]:
        """The tasks that a group names: lm-eval's, files beside it, or written out in it."""
        changes = {key: value for key, value in config.items() if key not in _GROUP_FIELDS} | overrides
        for member in config["task"]:
            entry = {"task": member} if isinstance(member, str) else member
            if not isinstance(entry, dict) or not isinstance(entry.get("group", entry.get("task")), str):
                raise UserError(f"{path}: group {config['group']!r} has the member {member!r}; give the name of a task")
            if "group" in entry:
                if not isinstance(entry.get("task"), list):
                    raise UserError(f"{path}: group {entry['group']!r} has no list `task`; name its tasks")
                yield from self._group(path, entry, changes)
                continue
            name, known = entry["task"], self._manager.task_index.get(entry["task"])
            own = changes | self._with_files(path, {key: value for key, value in entry.items() if key != "task"})
            if name.endswith((".yaml", ".yml")):
                yield from self.tasks(self._inside(path, name, "file"), own)
            elif known is not None and known.kind is Kind.TAG:
                yield from (self._task(path, own | {"task": each}, each) for each in sorted(known.tags))
            elif known is not None and known.kind is not Kind.GROUP:
                yield self._task(path, own | {"task": name}, name)
            elif known is None and (beside := self._beside(path, name)):
                yield from self.tasks(beside, own)
            elif known is None and {"doc_to_text", "doc_to_target", "output_type"} & own.keys():
                yield self._task(path, own | {"task": f"{config['group']}::{name}"}, None)
            else:
                near = suggest(name, self._manager.all_subtasks, "name a task of lm-eval or a file beside it", most=3)
                raise UserError(f"{path}: group {config['group']!r} has the unknown task {name!r}; {near}")

    def _beside(self, path: Path, name: str) -> Path | None:
        """The file in the folder of ``path`` that describes a task or group of this name."""
        pattern = re.compile(rf"^(task|group):\s*[\"']?{re.escape(name)}[\"']?\s*$", re.MULTILINE)
        for other in sorted(path.parent.glob("*.yaml")):
            if other.resolve() not in self._open and other.is_file() and other.stat().st_size < 1 << 20:
                inside = self._inside(path, other.name, "file")
                if pattern.search(inside.read_text(encoding="utf-8", errors="replace")):
                    return inside
        return None

    def _task(self, path: Path, config: Config, base: str | None) -> FileTask:
        name = config.get("task")
        if not isinstance(name, str):
            raise UserError(f"{path} is not a task file: it has no field `task` that names it; {_REMEDY}")
        if not re.fullmatch(r"[\w:+()' -][\w.:+()', -]{0,199}", name) or len(name.encode()) > 200:  # a file's name too
            raise UserError(f"{path} has the task name {name!r}; give letters, digits, dots, hyphens and underscores")
        config = {key: value for key, value in config.items() if key not in ("tag", "group", "task_list")}
        _check_fields(path, config)
        rows = self._rows(path, config) if base is None or "dataset_path" in config else None
        return FileTask(name, config, base, rows)

    def _rows(self, path: Path, config: Config) -> LocalRows | None:
        """The rows of a task, None for the hub's."""
        source, kwargs = config.get("dataset_path"), config.setdefault("dataset_kwargs", {})
        files = kwargs.get("data_files")
        if source in _BUILDERS:
            if not files or kwargs.get("data_dir"):
                raise UserError(f"{path} has {source} rows without data_files; name files beside it")
            return LocalRows(path.parent, str(source), {split: [*map(Path, paths)] for split, paths in files.items()})
        if not isinstance(source, str) or not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*|\w[\w.-]*", source):
            raise UserError(f"{path} has dataset_path {source!r}; give {', '.join(_BUILDERS)} or a data set of the hub")
        from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES

        if source in _PACKAGED_DATASETS_MODULES or Path(source).exists():
            problem = f"{path} has dataset_path {source}, which could run code or is a folder here"
            raise UserError(f"{problem}; name data_files of {', '.join(_BUILDERS)}")
        named = files.values() if isinstance(files, dict) else [files]
        for file in [each for value in named for each in _listed(value)] + _listed(kwargs.get("data_dir")):
            if not isinstance(file, str) or file.startswith(("/", "~")) or "://" in file or ".." in file:
                raise UserError(f"{path} names {file!r}, which is not a file of its data set; take it out")
        return None

    def _files(self, path: Path, files: Any) -> dict[str, list[str]]:
        """Data files by split; those without one are of "train", as the data library has it."""
        splits = files if isinstance(files, dict) else {"train": files}
        found: dict[str, list[str]] = {}
        for split, names in splits.items():
            for name in _listed(names):
                paths = [self._inside(path, name, f"rows of split {split}")]
                if not paths[0].is_file():
                    named = sorted(paths[0].parent.glob(paths[0].name))
                    paths = [self._inside(path, str(each), "rows") for each in named]
                if not paths or not all(one.is_file() for one in paths):
                    raise UserError(f"{path} names {name} for split {split}, which is not beside it; put it there")
                found.setdefault(split, []).extend(str(one) for one in paths)
        return found

    def _inside(self, path: Path, name: Any, what: str) -> Path:
        """A file that another one names: beside it, or under the same name in the folder of rows."""
        if not isinstance(name, str) or "\0" in name:
            raise UserError(f"{path} names {name!r} as {what}; give the name of a file")
        candidates = [(base / name).resolve() for base in (path.parent, *self._roots[1:])]
        found = next((one for one in candidates if one.is_file()), candidates[0])
        if not any(found.is_relative_to(root) for root in (*self._roots, _OWN)):
            raise UserError(f"{path} names {name}, which leads out of its folder; put the file beside it")
        return found


def _check_fields(path: Path, config: Config) -> None:
    """Refuse what lm-eval does not know, or would run or look for elsewhere."""
    for key in config:
        if key not in _TASK_FIELDS:
            known = suggest(key, _TASK_FIELDS, "see lm-eval's task guide")
            raise UserError(f"{path}: a task has no field {key!r}; {known}")
    few = config.get("fewshot_config") or {}
    if not isinstance(few, dict) or any(key not in [field.name for field in fields(FewshotConfig)] for key in few):
        raise UserError(f"{path}: fewshot_config is {few!r}; {_REMEDY}")
    if kwargs := config.pop("dataset_kwargs", None):
        config["dataset_kwargs"] = kept = {key: kwargs[key] for key in kwargs if key not in _DROPPED}
        if unknown := [key for key in kept if key not in _PLAIN]:
            raise UserError(f"{path}: dataset_kwargs has {unknown[0]!r}; give only {', '.join(_PLAIN)}")
    for key, least, most in (("num_fewshot", 0, 1 << 20), ("repeats", 1, _MOST_REPEATS)):
        value = config.get(key)
        if value is not None and not (type(value) is int and least <= value <= most):
            raise UserError(f"{path}: {key} is {value!r}; give {least} to {most}")
    metrics = config.get("metric_list")
    for metric in metrics if isinstance(metrics, list) else [] if metrics is None else [metrics]:
        name = metric.get("metric") if isinstance(metric, dict) else None
        if callable(name):  # only lm-eval's own files have code
            continue
        if not isinstance(name, str) or name not in METRIC_REGISTRY or metric.get("hf_evaluate"):
            near = suggest(str(name), METRIC_REGISTRY, f"give one of {', '.join(sorted(METRIC_REGISTRY))}")
            raise UserError(f"{path}: metric_list has {name!r}, which is not a metric of lm-eval's; {near}")
        aggregation = metric.get("aggregation", "mean")
        if not callable(aggregation) and str(aggregation) not in AGGREGATION_REGISTRY:
            raise UserError(f"{path}: {name} has aggregation {aggregation!r}; give {', '.join(AGGREGATION_REGISTRY)}")
    prompt = config.get("use_prompt")
    if prompt is not None and str(prompt).split(":")[0] not in PROMPT_REGISTRY:
        raise UserError(f"{path}: use_prompt is {prompt!r}; write a template as doc_to_text instead")


def _listed(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]


def use_sandbox() -> None:
    """Have lm-eval render all templates in a sandbox, bounded in time and memory: their authors may be anybody."""
    from lm_eval import utils

    if isinstance(utils.env, SandboxedEnvironment):
        return
    environment = SandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
    environment.filters["regex_replace"] = lambda text, pattern, new, count=0: re.sub(pattern, new, text, count=count)

    @lru_cache(maxsize=1024)
    def compiled(template: str) -> Template:
        return environment.from_string(template)

    def apply_template(template: str, doc: dict[str, Any]) -> str:
        with _bounded_time(_SECONDS), _bounded_memory(_BYTES):
            return compiled(template).render(**doc)

    utils.env, utils.apply_template = environment, apply_template


class _TooLong(BaseException):
    """No ``Exception``: Jinja passes over those where it computes constants."""


@contextmanager
def _bounded_time(seconds: int) -> Iterator[None]:
    """Raise ``TimeoutError`` in a block that takes longer; only the main thread can be interrupted."""

    def stop(number: int, frame: object) -> None:
        raise _TooLong

    with handle_signals(stop, signal.SIGALRM) as handled:
        if handled:
            signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            yield
        except _TooLong as error:
            raise TimeoutError(f"it takes longer than {seconds} s") from error
        finally:
            if handled:
                signal.setitimer(signal.ITIMER_REAL, 0)


@contextmanager
def _bounded_memory(size: int) -> Iterator[None]:
    """Raise ``OverflowError`` in a block that takes more bytes; where the system does not say what it has, never."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    taken = Path("/proc/self/statm")
    if taken.exists():
        most = int(taken.read_text().split()[0]) * resource.getpagesize() + size
        resource.setrlimit(resource.RLIMIT_AS, (most if soft < 0 else min(soft, most), hard))
    try:
        yield
    except MemoryError as error:
        raise OverflowError(f"a template takes more than {size:,} bytes") from error
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
