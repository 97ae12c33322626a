"""Results side by side: a row a score, a column a checkpoint, every score with its standard error."""

import math
from typing import Any

from inheritune_lit.evaluation.tasks import MMLU_PREFIX


def mmlu_macro(tasks: dict[str, Any]) -> dict[str, float] | None:
    """MMLU as the paper has it: the unweighted mean over subjects, with its standard error; None without subjects."""
    subjects = [scores["acc"] for name, scores in tasks.items() if name.startswith(MMLU_PREFIX) and "acc" in scores]
    if not subjects:
        return None
    return {
        "value": math.fsum(score["value"] for score in subjects) / len(subjects),
        "stderr": math.sqrt(math.fsum(score["stderr"] ** 2 for score in subjects)) / len(subjects),
        "subjects": len(subjects),
    }


def results_table(results: dict[str, Any]) -> str:
    """Markdown table of ``evaluate``'s results. Losses are nats a token, accuracies shares of 1."""
    checkpoints = results["checkpoints"]
    columns = [_scores(checkpoint) for checkpoint in checkpoints]
    names = list(dict.fromkeys(name for column in columns for name in column))
    lines = [
        "| score | " + " | ".join(checkpoint["name"] for checkpoint in checkpoints) + " |",
        "|---|" + "--:|" * len(checkpoints),
    ]
    lines += [f"| {name} | " + " | ".join(column.get(name, "") for column in columns) + " |" for name in names]
    return "\n".join(lines) + "\n"


def _scores(checkpoint: dict[str, Any]) -> dict[str, str]:
    """Name and text of each score; MMLU's subjects are summed up in one."""
    shown = {}
    if held_out := checkpoint["held_out"]:
        shown["held-out loss"] = _with_noise(held_out["loss"], held_out["stderr"])
    for task, scores in checkpoint["tasks"].items():
        if not task.startswith(MMLU_PREFIX):
            for metric, score in scores.items():
                shown[f"{task} {metric}"] = _with_noise(score["value"], score["stderr"])
    if macro := checkpoint["mmlu_macro"]:
        name = f"mmlu acc, mean of {macro['subjects']} subjects"
        shown[name] = _with_noise(macro["value"], macro["stderr"])
    return shown


def _with_noise(value: float, stderr: float | None) -> str:
    noise = "stderr unknown" if stderr is None or math.isnan(stderr) else f"± {stderr:.4f}"
    return f"{value:.4f} {noise}"
