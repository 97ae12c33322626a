"""Suites: which tasks make a table, and what the paper's table says, read from YAML."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from inheritune_lit.errors import UserError, suggest
from inheritune_lit.io.reading import read_yaml
from inheritune_lit.io.records import to_record
from inheritune_lit.resources import suites_dir

FloorKind = Literal["auto", "constant", "chance", "none"]

MMLU = "mmlu"  # task that stands for MMLU's 57 subjects, which are tasks of lm-eval
GROUPS = {  # lm-eval's tags of their four groups, and what the tables call them
    "mmlu_stem_tasks": "STEM",
    "mmlu_humanities_tasks": "humanities",
    "mmlu_social_sciences_tasks": "social sciences",
    "mmlu_other_tasks": "other",
}


@dataclass(frozen=True)
class Column:
    """A column of the table."""

    title: str
    task: str  # of lm-eval, or "mmlu"
    metric: str = ""  # of that task; "" for all the task has, each a column of its own
    num_fewshot: int | None = None  # examples in the prompt; None for the task's own number
    floor: FloorKind = "auto"
    """What a model that has learnt nothing scores: "constant" is the best single answer to all rows, "chance" one over
    the number of choices, "auto" the first where rows have different answers, else the second."""
    random_init: dict[str, Any] | None = None  # what random weights score, {"value", "source"}, in the table's unit


@dataclass(frozen=True)
class PaperRow:
    """A row of the paper's table: figures by column title, accuracies in percent."""

    model: str
    scores: dict[str, float]


@dataclass(frozen=True)
class Suite:
    """Columns, and the paper's rows for them, whose figures stand in ``source``."""

    name: str
    title: str
    columns: list[Column]
    source: str = ""
    average: bool = False  # the table has the mean of its columns
    paper: list[PaperRow] = field(default_factory=list)


def load_suite(name: str) -> Suite:
    """A suite by its name or its YAML file; a ``UserError`` for no such suite, or a file that does not describe one."""
    path = Path(name) if name.endswith((".yaml", ".yml")) else suites_dir() / f"{name}.yaml"
    if not path.is_file():
        known = sorted(file.stem for file in suites_dir().glob("*.yaml"))
        hint = suggest(name, known, f"give one of {', '.join(known)}, or a YAML file")
        raise UserError(f"unknown suite {name!r}; {hint}")
    hint = f"see {suites_dir() / 'quick.yaml'}"
    given = {"name": path.stem, "title": path.stem, **read_yaml(path, "a suite", hint)}
    suite = to_record({key: value for key, value in given.items() if value is not None}, Suite, path, "a suite", hint)
    if not suite.columns:
        raise UserError(f"{path} isn't a suite: it has no columns; {hint}")
    _check(suite, path)
    return suite


def suite_of_tasks(tasks: str | None) -> Suite:
    """A suite of tasks named on the command line, separated by commas; without tasks only held-out text is scored."""
    if not tasks:
        return Suite(name="", title="Held-out text", columns=[])
    names = list(dict.fromkeys(name.strip() for name in tasks.split(",") if name.strip()))
    short = [Path(name).stem if name.endswith((".yaml", ".yml")) else name for name in names]
    titles = [name if short.count(title) > 1 else title for name, title in zip(names, short, strict=True)]
    columns = [Column(title=title, task=name) for name, title in zip(names, titles, strict=True)]
    return Suite(name="tasks", title="Tasks", columns=columns)


def _check(suite: Suite, path: Path) -> None:
    titles = [column.title for column in suite.columns]
    shots: dict[str, int | None] = {}
    for column in suite.columns:
        where, shot = f"{path}: column {column.title!r}", column.num_fewshot
        if titles.count(column.title) > 1:
            raise UserError(f"{where} is there twice; give each a title of its own")
        if shot is not None and shot < 0:
            raise UserError(f"{where} has num_fewshot {shot!r}; give 0 or more")
        initial = column.random_init
        if initial is not None and not (set(initial) == {"value", "source"} and type(initial["value"]) in (int, float)):
            raise UserError(f"{where} has random_init {column.random_init!r}; give value and source")
        if shots.setdefault(column.task, shot) != shot:
            raise UserError(f"{path}: task {column.task!r} is there with different num_fewshot; give it one")
    for row in suite.paper:
        if unknown := [title for title in row.scores if title not in titles]:
            raise UserError(f"{path}: {row.model} has a score for {unknown[0]!r}, which is not a column")
