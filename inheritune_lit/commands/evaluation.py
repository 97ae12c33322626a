"""``inheritune eval``."""

from pathlib import Path
from typing import Literal

from inheritune_lit.errors import UserError


def evaluate_command(
    checkpoint_dir: list[Path] | None = None,
    suite: str | None = None,
    tasks: str | None = None,
    val_data: Path | None = None,
    val_blocks: int | None = None,
    max_seq_length: int | None = None,
    data_dir: Path | None = None,
    fetch_data: Path | None = None,
    limit: int | None = None,
    num_fewshot: int | None = None,
    dtype: Literal["float32", "bfloat16"] = "float32",
    quantize: Literal["bnb.nf4", "bnb.nf4-dq", "bnb.fp4", "bnb.fp4-dq", "bnb.int8"] | None = None,
    bos: Literal["none", "model"] = "none",
    max_batch_tokens: int | None = None,
    log_samples: bool = False,
    cache_dir: Path | None = None,
    devices: int | Literal["auto"] = 1,
    num_nodes: int = 1,
    out_dir: Path | None = None,
) -> None:
    """Score checkpoints on a suite or lm-eval tasks, and on held-out packed data. The same command continues.

    Args:
        checkpoint_dir: one or more checkpoints; the first is the one the others are compared with.
        suite: paper-table1, paper-table4, paper-table5, quick, or a YAML file like those in eval/.
        tasks: instead of a suite, lm-eval task names or task YAML files, separated by commas.
        val_data: packed data whose validation part is scored.
        val_blocks: samples of it; all when not given.
        max_seq_length: tokens a sample of it; the model's block size, at most 2048, when not given.
        data_dir: folder of local task rows, ``<task>/<split>.jsonl`` or .parquet, or copies of the hub's data sets; the
            hub's own when not given.
        fetch_data: mirror the rows of the suite or tasks from the hub into this folder, for --data_dir on a machine
            without a network, and do nothing else.
        limit: rows a task (a subject, for MMLU); all when not given.
        num_fewshot: examples in the prompt; the suite's or the task's default when not given, 5 for MMLU.
        dtype: floating-point type of the weights.
        quantize: bitsandbytes type of the weights.
        bos: "none" puts nothing before a prompt, as the paper; "model" what the model's tokenizer does.
        max_batch_tokens: tokens a forward pass; what fits into memory when not given.
        log_samples: keep prompts and answers of every row in out_dir too.
        cache_dir: folder of the scores of single requests: a task killed in its middle goes on there.
        devices: GPUs (or CPU processes) a node that share the requests, or "auto" for every GPU.
        num_nodes: nodes, each started with this command by torchrun or SLURM.
        out_dir: folder of the results, one file a model and task as it finishes, and results.json, .md and .csv; only
            printed when not given.
    """
    if fetch_data is not None:
        from inheritune_lit.evaluation.fetch import fetch_rows

        fetch_rows(fetch_data, suite=suite, tasks=tasks)
        return
    if not checkpoint_dir:
        raise UserError("no checkpoint; give --checkpoint_dir one or more folders")
    from inheritune_lit.evaluation.harness import evaluate as run

    run(
        checkpoint_dir,
        suite=suite,
        tasks=tasks,
        val_data=val_data,
        val_blocks=val_blocks,
        max_seq_length=max_seq_length,
        data_dir=data_dir,
        limit=limit,
        num_fewshot=num_fewshot,
        dtype=dtype,
        quantize=quantize,
        bos=bos,
        max_batch_tokens=max_batch_tokens,
        log_samples=log_samples,
        cache_dir=cache_dir,
        devices=devices,
        num_nodes=num_nodes,
        out_dir=out_dir,
    )
