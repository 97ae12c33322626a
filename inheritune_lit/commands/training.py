"""``inheritune pretrain``."""

from pathlib import Path
from typing import Any, Literal

from inheritune_lit.train.args import DistillArgs, EvalArgs, MixtureArgs, OptimizerArgs, SpeedArgs, TrainArgs


def pretrain_command(
    initial_checkpoint_dir: Path,
    data: Path,
    out_dir: Path,
    n: int | None = None,
    train: TrainArgs = TrainArgs(),
    eval: EvalArgs = EvalArgs(),
    optimizer: OptimizerArgs = OptimizerArgs(),
    speed: SpeedArgs = SpeedArgs(),
    precision: Literal["32-true", "bf16-mixed", "bf16-true"] | None = None,
    devices: int | Literal["auto"] = 1,
    num_nodes: int = 1,
    strategy: Literal["auto", "ddp", "fsdp", "hybrid"] = "auto",
    mixture: MixtureArgs = MixtureArgs(),
    distill: DistillArgs = DistillArgs(),
    documents: Literal["packed", "separate"] = "packed",
    allow_data_change: bool = False,
    seed: int = 1337,
    logger_name: Literal["csv", "tensorboard", "wandb", "mlflow"] = "csv",
    dry_run: bool = False,
) -> None:
    """Continue the training of a checkpoint on packed data. The same command again continues a stopped run.

    Args:
        initial_checkpoint_dir: litgpt checkpoint to start from, such as a slice.
        data: packed data from ``inheritune prepare``.
        out_dir: run folder: ``metrics.csv``, resumable state, and ``final/``, the trained checkpoint.
        n: number of layers, for recipes with ``{n}`` in their paths.
        train: budget, batches and schedule.
        eval: validation.
        optimizer: which one, and its settings.
        speed: kernels, compiler, memory.
        precision: bf16-mixed on a GPU, 32-true on CPU, when not given; bf16-true keeps fp32 copies of the weights.
        devices: GPUs (or CPU processes) a node, or "auto" for every GPU.
        num_nodes: nodes, each started with this command by torchrun or SLURM.
        strategy: ddp, or fsdp to shard the model over all devices, or hybrid to shard within nodes only.
        mixture: how often each domain is drawn.
        distill: a teacher to learn from.
        documents: "packed" cuts text into samples wherever they end, across documents; "separate" keeps each sample
            within one document and pads what is left.
        allow_data_change: continue a run although its data, mixture or ``documents`` is another than when it was
            started; from the next step on the new one counts.
        seed: seed of the data order.
        logger_name: a logger beside ``metrics.csv``.
        dry_run: print the plan and stop.
    """
    given = dict(locals())
    from inheritune_lit.train.args import PretrainArgs

    args = PretrainArgs(**given)
    from inheritune_lit.train.pretrain import pretrain

    print_result(pretrain(args))


def print_result(result: Any) -> None:
    """Print a result once, however many ranks have it."""
    import torch

    if str(result) and not (torch.distributed.is_initialized() and torch.distributed.get_rank()):
        print(result)
