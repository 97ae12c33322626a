"""What every round is trained with."""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from inheritune_lit.train.args import (
    EvalArgs,
    LoggerName,
    MixtureArgs,
    OptimizerArgs,
    Precision,
    SpeedArgs,
    Strategy,
    TrainArgs,
)
from inheritune_lit.train.run_folder import training_settings


@dataclass(frozen=True)
class Training:
    """Arguments of ``pretrain`` that all rounds share; the budget in ``train`` is that of one round."""

    data: Path
    train: TrainArgs
    eval: EvalArgs
    optimizer: OptimizerArgs
    speed: SpeedArgs
    mixture: MixtureArgs
    documents: Literal["packed", "separate"]
    precision: Precision
    devices: int | Literal["auto"]
    num_nodes: int
    strategy: Strategy
    seed: int
    logger_name: LoggerName

    def of_round(self, number: int, max_time: float | None) -> dict[str, Any]:
        """Keyword arguments of ``pretrain``.

        Every round begins its schedule anew, and has a data order of its own: T steps on fresh samples, as far as there
        are any.

        Args:
            number: of the round, from 1; the first one has the order that ``inheritune pretrain`` has.
            max_time: seconds that are left.
        """
        shared = {field.name: getattr(self, field.name) for field in fields(self)}
        return {**shared, "seed": self.seed + number - 1, "train": replace(self.train, max_time=max_time)}

    def settings(self) -> dict[str, Any]:
        """All that changes the outcome, data aside."""
        arguments = training_settings(self.train, self.eval, self.optimizer, self.speed)
        return {**arguments, "precision": self.precision, "seed": self.seed}
