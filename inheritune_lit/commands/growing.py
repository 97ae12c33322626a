"""``inheritune grow``."""

from pathlib import Path
from typing import Literal

from inheritune_lit.train.args import EvalArgs, MixtureArgs, OptimizerArgs, SpeedArgs, TrainArgs


def grow_command(
    ref: str,
    data: Path,
    out_dir: Path,
    n: int | None = None,
    initial_checkpoint_dir: Path | None = None,
    grow_by: int = 2,
    new_layers: str = "next",
    old_layers: Literal["trained", "inherited"] = "trained",
    max_layers: int | None = None,
    max_flops: float | None = None,
    margin: float = 0.01,
    optimizer_state: Literal["reset", "keep"] = "reset",
    train: TrainArgs = TrainArgs(),
    eval: EvalArgs = EvalArgs(),
    optimizer: OptimizerArgs = OptimizerArgs(),
    speed: SpeedArgs = SpeedArgs(),
    precision: Literal["32-true", "bf16-mixed", "bf16-true"] | None = None,
    devices: int | Literal["auto"] = 1,
    num_nodes: int = 1,
    strategy: Literal["auto", "ddp", "fsdp", "hybrid"] = "auto",
    mixture: MixtureArgs = MixtureArgs(),
    documents: Literal["packed", "separate"] = "packed",
    seed: int = 1337,
    logger_name: Literal["csv", "tensorboard", "wandb", "mlflow"] = "csv",
    dry_run: bool = False,
) -> None:
    """Train a small model, add layers and train again until it is as good as the reference (Algorithm 1 of the paper).

    The same command again continues what was stopped, and goes on with a larger --max_layers or --max_flops.

    Args:
        ref: the reference, as for ``inheritune slice``.
        data: packed data from ``inheritune prepare``; its validation part decides.
        out_dir: folder of everything: a run folder a round, and grow.md, grow.json and grow.png, the history.
        n: layers to start with, the reference's first ones; half of them when not given.
        initial_checkpoint_dir: a checkpoint of the reference's shape to start from in place of its first n layers.
        grow_by: layers that a round adds.
        new_layers: "next", the reference's at the next positions; "own", copies of the model's own last ones; or which
            layers of the reference to take in turn, such as its lazy ones: last:8, or 16-23.
        old_layers: "trained" goes on with the model of the round before (Algorithm 1); "inherited" begins every round
            with the reference's layers again ("repeat steps 1-2" in the paper's text).
        max_layers: depth at which growing ends; the reference's when not given.
        max_flops: FLOPs of training in all rounds; no limit when not given.
        margin: nats a token by which the loss may be above the reference's, tested with 95% confidence on the
            differences of the validation samples; the default is the last digit that the paper prints.
        optimizer_state: "reset" begins every round with a fresh optimizer, as the paper; "keep" leaves old layers
            theirs.
        train: budget of a round, batches and schedule, which begins anew in every round; max_time is for all.
        eval: validation.
        optimizer: which one, and its settings.
        speed: kernels, compiler, memory.
        precision: bf16-mixed on a GPU, 32-true on CPU, when not given; bf16-true keeps fp32 copies of the weights.
        devices: GPUs (or CPU processes) a node, or "auto" for every GPU.
        num_nodes: nodes, each started with this command by torchrun or SLURM.
        strategy: ddp, or fsdp to shard the model over all devices, or hybrid to shard within nodes only.
        mixture: how often each domain is drawn.
        documents: "packed" cuts text into samples wherever they end, across documents; "separate" keeps each sample
            within one document and pads what is left.
        seed: seed of the first round's data order; the next round has the next seed.
        logger_name: a logger beside ``metrics.csv``.
        dry_run: print the plan and stop.
    """
    from inheritune_lit.studies.grow import grow as run
    from inheritune_lit.studies.grow_layers import GrowOptions
    from inheritune_lit.studies.grow_training import Training
    from inheritune_lit.train.devices import default_precision

    training = Training(
        data=data,
        train=train,
        eval=eval,
        optimizer=optimizer,
        speed=speed,
        mixture=mixture,
        documents=documents,
        precision=precision or default_precision(),
        devices=devices,
        num_nodes=num_nodes,
        strategy=strategy,
        seed=seed,
        logger_name=logger_name,
    )
    run(
        ref,
        out_dir,
        GrowOptions(n, grow_by, new_layers, old_layers, max_layers, max_flops),
        training,
        initial_checkpoint_dir=initial_checkpoint_dir,
        margin=margin,
        optimizer_state=optimizer_state,
        dry_run=dry_run,
    )
