"""LogiQA: its hub data set needs a loading script, which the data library refuses, so the script's work is here."""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval.tasks import TaskManager

from inheritune_lit.errors import UserError

SPLITS = {"test": "Test.txt", "validation": "Eval.txt", "train": "Train.txt"}
"""Files of the original release by split."""
_LETTERS = "abcd"
_RAW = re.compile(r"\.[^ ]")


def parse(path: Path) -> list[dict[str, Any]]:
    """Rows of an original text file: blocks of label, context, question and four options, a blank line between.

    Raises:
        UserError: a block has another shape.
    """
    rows = []
    blocks = [block.splitlines() for block in re.split(r"\n\s*\n", path.read_text(encoding="utf-8").strip())]
    for number, lines in enumerate(blocks, start=1):
        if len(lines) != 7 or lines[0].strip() not in _LETTERS:
            raise UserError(f"{path}: block {number} is not label, context, question and four options; copy it again")
        label, context, question, *options = lines
        rows.append({"label": label.strip(), "context": context, "question": question, "options": options})
    return normalise(rows)


def normalise(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows as lm-eval's data set has them, which has a blank after every full stop; rows that have are left alone."""
    texts = [text for row in rows for text in (row["context"], row["question"], *row["options"])]
    if not any(_RAW.search(text) for text in texts):
        return rows
    return [
        {
            **row,
            "context": _spaced(row["context"]),
            "question": _spaced(row["question"]),
            "options": [_spaced(option) for option in row["options"]],
        }
        for row in rows
    ]


def _spaced(text: str) -> str:
    return text.replace(".", ". ").strip()


MMLU, PREFIX, FEWSHOT = "mmlu", "mmlu_", 5
GROUPS = {
    "mmlu_stem_tasks": "STEM",
    "mmlu_humanities_tasks": "humanities",
    "mmlu_social_sciences_tasks": "social sciences",
    "mmlu_other_tasks": "other",
}
"""lm-eval's tags of the four groups, and what the tables call them."""


@dataclass(frozen=True)
class Mean:
    """A mean over subjects, its standard error (None where a subject's is unknown), and all questions."""

    value: float
    stderr: float | None
    n: int


def subjects(manager: TaskManager) -> dict[str, str]:
    """MMLU's lm-eval tasks by subject."""
    return {
        entry.cfg["dataset_name"]: name
        for name, entry in manager.task_index.items()
        if name.startswith(PREFIX)
        and entry.yaml_path is not None
        and entry.yaml_path.parent.name == "default"
        and "dataset_name" in entry.cfg
    }


def is_subject(name: str, config: dict[str, Any]) -> bool:
    """Whether a registered task is one of MMLU's."""
    return name.startswith(PREFIX) and config.get("dataset_path") == "cais/mmlu"


def weighted(scores: list[dict[str, Any]], weights: list[float]) -> Mean:
    """Mean of subjects' scores.

    Args:
        scores: ``{"value", "stderr", "n"}`` each.
        weights: all the same for the paper's MMLU (macro), the numbers of questions for lm-eval's own (micro).
    """
    total = math.fsum(weights)
    value = math.fsum(weight * score["value"] for weight, score in zip(weights, scores, strict=True)) / total
    stderrs = [score["stderr"] for score in scores]
    stderr = None
    if all(error is not None for error in stderrs):
        stderr = math.hypot(*(weight * error for weight, error in zip(weights, stderrs, strict=True))) / total
    return Mean(value, stderr, sum(score["n"] for score in scores))
