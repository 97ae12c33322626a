"""Arguments of ``inheritune eval``. Free of torch, so that help and errors are instant."""

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Literal

from inheritune_lit.errors import UserError
from inheritune_lit.io.arguments import CommandArgs, Quantization, check_numbers

Bos = Literal["none", "model"]
Dtype = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class EvaluateArgs(CommandArgs):
    """Score checkpoints on a suite or lm-eval tasks, and on held-out packed data. The same command continues."""

    checkpoint_dir: list[Path] | None = None
    """One or more checkpoints; the first is the one the others are compared with."""
    _: KW_ONLY
    suite: str | None = None
    """paper-table1, paper-table4, paper-table5, quick, or a YAML file like those in eval/."""
    tasks: str | None = None
    """Instead of a suite, lm-eval task names or task YAML files, separated by commas."""
    val_data: Path | None = None
    """Packed data whose validation part is scored."""
    val_blocks: int | None = None
    """Samples of it; all when not given."""
    max_seq_length: int | None = None
    """Tokens per sample of it; the model's block size, at most 2048, when not given."""
    data_dir: Path | None = None
    """Folder of local task rows, ``<task>/<split>.jsonl`` or .parquet, or copies of the hub's data sets; the hub's
    own when not given."""
    fetch_data: Path | None = None
    """Mirror the rows of the suite or tasks from the hub into this folder, for --data_dir on a machine without a
    network, and do nothing else."""
    limit: int | None = None
    """Rows per task (per subject, for MMLU), and samples of --val_data; all when not given."""
    num_fewshot: int | None = None
    """Examples in the prompt; the suite's or the task's default when not given, 5 for MMLU."""
    dtype: Dtype | None = None
    """Floating-point type of weights and activations; bfloat16 on a GPU that has it, else float32, when not given."""
    quantize: Quantization | None = None
    """bitsandbytes type of the weights: bnb.nf4, bnb.nf4-dq, bnb.fp4, bnb.fp4-dq or bnb.int8."""
    bos: Bos = "none"
    """"none" puts nothing before a prompt, as the paper; "model" what the model's tokenizer does."""
    max_batch_tokens: int | None = None
    """Tokens per forward pass; what fits into memory when not given."""
    log_samples: bool = False
    """Keep prompts and answers of every row in out_dir too."""
    cache_dir: Path | None = None
    """Folder of the scores of single requests, which other evaluations use too; by default they are in out_dir until
    it is finished."""
    devices: int | Literal["auto"] = 1
    """GPUs (or CPU processes) per node that share the requests, or "auto" for every GPU."""
    num_nodes: int = 1
    """Nodes, each started with this command by torchrun or SLURM."""
    out_dir: Path | None = None
    """Folder of the results, one file per model and task as it finishes, and results.json, .md and .csv; only printed
    when not given."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, "limit", "max_batch_tokens", "val_blocks", "max_seq_length", least=1)
        check_numbers(self, "num_fewshot", least=0)
        if self.suite and self.tasks:
            raise UserError(f"both --suite {self.suite} and --tasks {self.tasks}; give one of them")
        if self.fetch_data is not None:
            if not self.suite and not self.tasks:
                raise UserError("--fetch_data wants to know what to fetch; give --suite or --tasks")
            return
        if not self.checkpoint_dir:
            raise UserError("no checkpoint; give one or more checkpoint folders")
        resolved = [path.resolve() for path in self.checkpoint_dir]
        for path in self.checkpoint_dir:
            if resolved.count(path.resolve()) > 1:
                raise UserError(f"{path} is given twice; name each checkpoint once")
        if not self.suite and not self.tasks and self.val_data is None:
            raise UserError("nothing to score; give --suite, such as quick, --tasks, such as piqa,mmlu, or --val_data")
        if self.log_samples and self.out_dir is None:
            raise UserError("--log_samples has nowhere to write; give --out_dir")
