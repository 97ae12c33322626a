"""Arguments of the comparison of criteria. Free of torch so that ``--help`` is instant."""

from dataclasses import dataclass, field
from typing import Literal

from inheritune_lit.train.args import EvalArgs, OptimizerArgs, TrainArgs

Criterion = Literal["first", "middle", "last", "alternate", "block-influence", "avg-rank", "random"]


@dataclass(frozen=True)
class HealingArgs:
    """What is trained for every criterion and seed. The defaults are for a CPU and a model of a few million parameters.

    "first", "middle" and "last" take neighbouring layers, "alternate" layers at equal distances; "block-influence" and
    "avg-rank" those where the measure is highest, in the reference's order; "random" takes none, but fresh weights.
    """

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
    precision: Literal["32-true", "bf16-mixed", "bf16-true"] | None = None
    """bf16-mixed on a GPU, 32-true on CPU, when not given"""
