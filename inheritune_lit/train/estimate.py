"""Does a run fit into memory and onto the disk? Said before it starts, and when it did not."""

import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from inheritune_lit.checkpoint.config import Config
from inheritune_lit.errors import UserError
from inheritune_lit.model.devices import USABLE, free_memory
from inheritune_lit.train.args import OptimizerArgs, Precision, SpeedArgs, TrainArgs
from inheritune_lit.train.kernels import Kernels
from inheritune_lit.train.memory import StepMemory, largest_micro_batch, step_memory


@dataclass(frozen=True)
class Room:
    """What a run needs of one device and of the disk.

    Attributes:
        memory: predicted for a step.
        checkpointed: the same with activation checkpointing.
        device: where it runs.
    """

    memory: StepMemory
    checkpointed: StepMemory
    train: TrainArgs
    device: torch.device

    @classmethod
    def of(
        cls,
        config: Config,
        parameters: int,
        block_size: int,
        precision: Precision,
        train: TrainArgs,
        speed: SpeedArgs,
        optimizer: OptimizerArgs,
        kernels: Kernels,
        device: torch.device,
        shards: int,
        teacher: int = 0,
    ) -> "Room":
        """Predict a run's needs; ``shards`` devices share the parameters, and each holds the ``teacher``'s bytes."""

        def predict(speed: SpeedArgs) -> StepMemory:
            batch = (train.micro_batch_size, block_size)
            memory = step_memory(
                config, parameters, *batch, precision, speed, optimizer, kernels.loss, kernels.compiled
            )
            return replace(
                memory,
                weights=memory.weights // shards,
                gradients=memory.gradients // shards,
                optimizer=memory.optimizer // shards,
                teacher=teacher,
            )

        return cls(predict(speed), predict(replace(speed, activation_checkpointing=True)), train, device)

    def warn(self) -> None:
        """Say what would help where the predicted memory is not there; the run still tries."""
        available = free_memory(self.device)
        if available is not None and self.memory.total > available:
            print(
                f"inheritune: warning: a step needs about {self.memory.total / 1e9:.1f} GB, {available / 1e9:.1f} GB "
                f"are free; {self._advice(available)}",
                file=sys.stderr,
                flush=True,
            )

    def out_of_memory(self) -> UserError:
        """What to do after a GPU ran out of memory."""
        total = torch.cuda.get_device_properties(self.device).total_memory
        # What was tried did not fit, whatever was predicted.
        fits = min(int(total * USABLE), self.memory.total - 1)
        return UserError(
            f"out of memory: a step was predicted to need {self.memory.total / 1e9:.1f} GB of {total / 1e9:.1f}; "
            f"{self._advice(fits)}: give it and run the same command again"
        )

    def check_disk(self, out_dir: Path) -> None:
        """Refuse a run whose saves cannot fit.

        Raises:
            UserError: there is too little space for the state (two of it, while one replaces the other) and the
                checkpoints.
        """
        state = self.memory.weights + self.memory.optimizer
        checkpoints = 1 + self.train.keep_last + 2 * self.train.keep_best
        needed = 2 * state + checkpoints * self.memory.weights
        there = next(folder for folder in (out_dir, *out_dir.resolve().parents) if folder.is_dir())
        held = sum(path.stat().st_size for path in out_dir.rglob("*") if path.is_file())
        free = shutil.disk_usage(there).free + held
        if needed > free:
            raise UserError(
                f"{out_dir} needs {needed / 1e9:.1f} GB for the state and the checkpoints, {free / 1e9:.1f} GB are "
                "free on its disk; make room, give another --out_dir or a smaller --train.keep_last"
            )

    def _advice(self, available: int) -> str:
        asked = self.train.micro_batch_size
        if fits := largest_micro_batch(available, self.memory, asked):
            return f"--train.micro_batch_size {fits} fits"
        if fits := largest_micro_batch(available, self.checkpointed, asked):
            return f"--speed.activation_checkpointing true with --train.micro_batch_size {min(fits, asked)} fits"
        model = self.memory.weights + self.memory.gradients + self.memory.optimizer
        return (
            f"the model and its optimizer alone take {model / 1e9:.1f} GB: try --optimizer.name adamw8bit, --strategy "
            "fsdp over several GPUs, or fewer layers"
        )
