"""Arguments of the studies. Free of torch, so that help and errors are instant."""

import math
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Literal

from inheritune_lit import EvalArgs, OptimizerArgs, TrainArgs, TrainingArgs
from inheritune_lit.errors import UserError
from inheritune_lit.io.arguments import CommandArgs, check_numbers

Criterion = Literal["first", "middle", "last", "alternate", "ends", "influence", "search", "random"]
SEARCHED = ("ends", "influence", "search")  # criteria whose layers are in the record of a search
_ABLATION = TrainArgs(
    global_batch_size=16, micro_batch_size=16, max_tokens=200_000, lr_warmup_steps=10, min_lr=1e-4, save_interval=50
)


@dataclass(frozen=True)
class GrowArgs(TrainingArgs):
    """Train a small model, add layers and train again until it is as good as the reference (Algorithm 1 of the
    paper).

    The same command again continues what was stopped, and continues with a larger --max_layers or --max_flops.
    """

    ref: str
    """The reference, as for ``inheritune slice``."""
    data: Path
    """Packed data from ``inheritune prepare``; its validation part decides."""
    out_dir: Path
    """Folder of everything: a run folder per round, and grow.md, grow.json and grow.png, the history."""
    _: KW_ONLY
    n: int | None = None
    """Layers to start with, the reference's first ones; half of them when not given."""
    initial_checkpoint_dir: Path | None = None
    """A checkpoint of the reference's shape to start from instead of its first n layers."""
    grow_by: int = 2
    """Layers that a round adds."""
    new_layers: str = "next"
    """"next", the reference's at the next positions; or which layers of the reference to take in turn, such as its
    lazy ones: last:8, or 16-23."""
    old_layers: Literal["trained", "inherited"] = "trained"
    """"trained" continues with the model of the round before (Algorithm 1); "inherited" starts every round with the
    reference's layers again ("repeat steps 1-2" in the paper's text)."""
    max_layers: int | None = None
    """Depth at which growing ends; the reference's when not given."""
    max_flops: float | None = None
    """FLOPs of training in all rounds; no limit when not given."""
    margin: float = 0.01
    """Nats per token by which the loss may be above the reference's, tested with 95% confidence on the differences of
    the validation samples; the default is the last digit that the paper prints."""
    seed: int = 1337
    """Seed of the first round's data order; the next round has the next seed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.margin < math.inf:
            raise UserError(f"--margin is {self.margin}; give the nats by which the loss may be worse, 0 or more")
        check_numbers(self, "grow_by", least=1)
        if self.n is not None and self.initial_checkpoint_dir is not None:
            raise UserError(f"--n {self.n} and --initial_checkpoint_dir both say where to start; give one")
        if self.old_layers == "inherited" and self.initial_checkpoint_dir is not None:
            every = "--old_layers inherited takes every layer from the reference"
            raise UserError(f"{every}, --initial_checkpoint_dir does not; give one of them")


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
    num_workers: int = 1
    """Models that are trained side by side, in as many processes of this machine."""
    cluster: str | None = None
    """Address of a Dask scheduler whose workers train them, such as tcp://host:8786; they see the same folders."""
    dry_run: bool = False
    """Print what will be trained and stop."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, "num_workers", least=1)
        if not 1 <= self.baseline_seeds <= self.seeds:
            given = f"--seeds {self.seeds} --baseline_seeds {self.baseline_seeds}"
            raise UserError(f"{given}; give 1 or more, and at most as many seeds of baselines")


@dataclass(frozen=True)
class DemoArgs(CommandArgs):
    """Run the whole recipe in miniature, offline, on text every Python installation carries."""

    out_dir: Path = Path("runs/demo")
    """Folder for everything the demo makes; finished parts are kept when it is run again."""


@dataclass(frozen=True)
class AblateArgs(TrainingArgs):
    """Compare ways of choosing layers: slice a reference by each, and train every slice with several seeds.

    "first", "middle" and "last" take neighbouring layers, "alternate" layers at equal distances; "ends" (first and last
    ones), "influence" (where block influence is highest) and "search" take those that ``inheritune search`` found;
    "random" takes none, but fresh weights. The defaults are for a CPU and a model of a few million parameters. The same
    command again continues.
    """

    ref: str
    """The reference, as for ``inheritune slice``."""
    data: Path
    """Packed data from ``inheritune prepare``."""
    out_dir: Path
    """Folder of everything: slices, runs, and ablation.json, ablation.md and ablation.png, the result."""
    _: KW_ONLY
    n: int | None = None
    """Layers to keep; half of the reference's, rounded down, when not given."""
    criteria: list[Criterion] = field(default_factory=lambda: ["first", "middle", "last", "alternate"])
    """How layers are chosen; differences are to the one listed first."""
    seeds: list[int] = field(default_factory=lambda: [1, 2, 3])
    """Seeds of the data order (and of fresh weights); every criterion has the same ones."""
    search: Path | None = None
    """Out_dir of ``inheritune search`` on the reference, for "ends", "influence" and "search"."""
    train: TrainArgs = _ABLATION
    """Budget, batches and schedule of each run."""
    eval: EvalArgs = field(default_factory=lambda: EvalArgs(interval=25, max_iters=8))
    """Validation of each run."""
    optimizer: OptimizerArgs = field(default_factory=lambda: OptimizerArgs(lr=1e-3))
    """Optimizer of each run."""
    num_workers: int = 1
    """Runs that are trained side by side, in as many processes of this machine."""
    cluster: str | None = None
    """Address of a Dask scheduler whose workers train the runs, such as tcp://host:8786; they see the same folders."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, "num_workers", least=1)
        for name, values in (("seeds", self.seeds), ("criteria", self.criteria)):
            if not values or len(set(values)) < len(values):
                raise UserError(f"--{name} is {values}; give one or more, each once")
        if self.seed != TrainingArgs.seed:
            raise UserError(f"--seed {self.seed} is for one run; give --seeds, which every criterion has")
        if self.search is None and (chosen := [one for one in self.criteria if one in SEARCHED]):
            raise UserError(f"criterion {chosen[0]} takes what a search found; give --search, its --out_dir")
        if self.devices != 1 or self.num_nodes != 1:
            raise UserError("ablate trains every run on one device; with several of them use --cluster")
