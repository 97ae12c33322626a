"""MMLU: 57 subjects, four groups of them, and two ways to average."""

import math
from dataclasses import dataclass
from typing import Any

from lm_eval.tasks import TaskManager

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
