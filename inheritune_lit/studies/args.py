"""Arguments of the studies. Free of torch, so that help and errors are instant."""

from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Literal

from inheritune_lit.io.arguments import CommandArgs
from inheritune_lit.train.args import EvalArgs, OptimizerArgs, TrainArgs, TrainingArgs

Criterion = Literal["first", "middle", "last", "alternate", "block-influence", "avg-rank", "random"]


@dataclass(frozen=True)
class GrowArgs(TrainingArgs):
    """Train a small model, add layers and train again until it is as good as the reference (Algorithm 1 of the
    paper).

    The same command again continues what was stopped, and goes on with a larger --max_layers or --max_flops.
    """

    ref: str
    """The reference, as for ``inheritune slice``."""
    data: Path
    """Packed data from ``inheritune prepare``; its validation part decides."""
    out_dir: Path
    """Folder of everything: a run folder a round, and grow.md, grow.json and grow.png, the history."""
    _: KW_ONLY
    n: int | None = None
    """Layers to start with, the reference's first ones; half of them when not given."""
    initial_checkpoint_dir: Path | None = None
    """A checkpoint of the reference's shape to start from in place of its first n layers."""
    grow_by: int = 2
    """Layers that a round adds."""
    new_layers: str = "next"
    """"next", the reference's at the next positions; "own", copies of the model's own last ones; or which layers of
    the reference to take in turn, such as its lazy ones: last:8, or 16-23."""
    old_layers: Literal["trained", "inherited"] = "trained"
    """"trained" goes on with the model of the round before (Algorithm 1); "inherited" begins every round with the
    reference's layers again ("repeat steps 1-2" in the paper's text)."""
    max_layers: int | None = None
    """Depth at which growing ends; the reference's when not given."""
    max_flops: float | None = None
    """FLOPs of training in all rounds; no limit when not given."""
    margin: float = 0.01
    """Nats a token by which the loss may be above the reference's, tested with 95% confidence on the differences of
    the validation samples; the default is the last digit that the paper prints."""
    optimizer_state: Literal["reset", "keep"] = "reset"
    """"reset" begins every round with a fresh optimizer, as the paper; "keep" leaves old layers theirs."""
    seed: int = 1337
    """Seed of the first round's data order; the next round has the next seed."""


@dataclass(frozen=True)
class ReproduceArgs(CommandArgs):
    """Train the paper's comparisons at a size that runs here: Tables 1 to 3, distillation, which layers to begin
    with.

    The same command again continues; models that are done are kept. Ends with replication.md and its figures.
    """

    source: list[Path]
    """Text: folders or files that ``inheritune prepare`` reads, each a domain where there are several."""
    _: KW_ONLY
    out_dir: Path = Path("runs/replication")
    """Folder for everything."""
    scale: Literal["small", "long", "tiny"] = "small"
    """"small" is for an hour on a CPU; "long" trains models half as wide for 13 times the steps; "tiny" shows that
    it runs."""
    seeds: int = 3
    """Trainings of each model of the main comparison (Table 1), with other weights and another order."""
    baseline_seeds: int = 1
    """The same for the other models."""
    only: list[str] | None = None
    """Train just these models of the grid, and those that they begin with."""
    dry_run: bool = False
    """Say what will be trained and stop."""


@dataclass(frozen=True)
class DemoArgs(CommandArgs):
    """Run the whole recipe in miniature, offline, on text every Python installation carries."""

    out_dir: Path = Path("runs/demo")
    """Folder for everything the demo makes; finished parts are kept when it is run again."""


@dataclass(frozen=True)
class AblateArgs(TrainingArgs):
    """Compare ways of choosing layers: slice a reference by each, train every slice with several seeds.

    The same command again continues.
    """

    ref: str
    """The reference, as for ``inheritune slice``."""
    data: Path
    """Packed data from ``inheritune prepare``."""
    out_dir: Path
    """Folder of everything: slices, runs, and criteria.json, criteria.md and criteria.png, the result."""
    _: KW_ONLY
    n: int | None = None
    """Layers to keep; half of the reference's, rounded down, when not given"""
    criteria: list[Criterion] = field(
        default_factory=lambda: ["first", "middle", "last", "alternate", "block-influence", "avg-rank"]
    )
    """What layers are chosen by; differences are to the one listed first"""
    seeds: list[int] = field(default_factory=lambda: [1, 2, 3])
    """Seeds of the data order (and of fresh weights); every criterion sees the same ones"""
    train: TrainArgs = field(
        default_factory=lambda: TrainArgs(
            global_batch_size=16,
            micro_batch_size=16,
            max_tokens=200_000,
            lr_warmup_steps=10,
            min_lr=1e-4,
            save_interval=50,
        )
    )
    """Budget, batches and schedule of each run"""
    eval: EvalArgs = field(default_factory=lambda: EvalArgs(interval=25, max_iters=8))
    """Validation of each run"""
    optimizer: OptimizerArgs = field(default_factory=lambda: OptimizerArgs(lr=1e-3))
    """Optimizer of each run"""
