"""``inheritune eval``."""

from pathlib import Path
from typing import Literal


def evaluate(
    checkpoint_dir: list[Path],
    tasks: str | None = None,
    val_data: Path | None = None,
    val_blocks: int | None = None,
    max_seq_length: int | None = None,
    data_dir: Path | None = None,
    limit: int | None = None,
    num_fewshot: int | None = None,
    batch_size: int = 16,
    dtype: Literal["float32", "bfloat16"] = "float32",
    out_dir: Path | None = None,
) -> None:
    """Score checkpoints on lm-eval tasks and on held-out packed data.

    Args:
        checkpoint_dir: one or more litgpt checkpoints.
        tasks: lm-eval task names or task YAML files, separated by commas.
        val_data: packed data whose validation part is scored.
        val_blocks: samples of it; all when not given.
        max_seq_length: tokens a sample of it; the model's block size, at most 2048, when not given.
        data_dir: folder of local task rows, ``<task>/<split>.jsonl``; the hub's data sets when not given.
        limit: rows a task (a subject, for MMLU); all when not given.
        num_fewshot: examples in the prompt; the task's default when not given, 5 for MMLU.
        batch_size: sequences a forward pass.
        dtype: floating-point type of the weights.
        out_dir: folder for results.json and results.md; printed only when not given.
    """
    from inheritune_lit.evaluation.harness import evaluate as run

    run(
        checkpoint_dir,
        tasks=tasks,
        val_data=val_data,
        val_blocks=val_blocks,
        max_seq_length=max_seq_length,
        data_dir=data_dir,
        limit=limit,
        num_fewshot=num_fewshot,
        batch_size=batch_size,
        dtype=dtype,
        out_dir=out_dir,
    )
