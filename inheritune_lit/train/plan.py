"""What a run will do and cost, worked out and checked before anything is spent."""

import logging
import shutil
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch

from inheritune_lit.checkpoint.config import Config
from inheritune_lit.data.mixture import Mixture
from inheritune_lit.errors import UserError
from inheritune_lit.model.devices import USABLE, free_memory
from inheritune_lit.model.flops import flops_per_token
from inheritune_lit.train.args import EvalArgs, Precision, SpeedArgs, TrainArgs, TrainingArgs
from inheritune_lit.train.memory import StepMemory, largest_micro_batch, step_memory
from inheritune_lit.train.setup import Kernels

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunPlan:
    """Numbers of a run.

    Attributes:
        total_steps: optimizer steps.
        budget: tokens asked for; what is over whole steps is not trained.
        tokens: tokens the run trains on (targets; the expected number where samples hold padding).
        accumulation: micro-batches per step.
        block_size: tokens per sample.
        tokens_per_step: inputs per step, padding included.
        val_blocks: samples per validation.
        parameters: parameters of the model, a tied head counted once.
        flops_per_token: forward and backward, and a teacher's forward.
        peak_flops: of one device in bf16, FLOP/s; None where it is not known.
    """

    total_steps: int
    budget: int
    tokens: int
    accumulation: int
    block_size: int
    tokens_per_step: int
    val_blocks: int
    parameters: int
    flops_per_token: float
    peak_flops: float | None


def block_size_of(train: TrainArgs, config: Config) -> int:
    """Returns the tokens per sample.

    Raises:
        UserError: more than the model can attend to, or fewer than one.
    """
    block_size = config.block_size if train.max_seq_length is None else train.max_seq_length
    if not 1 <= block_size <= config.block_size:
        raise UserError(
            f"--train.max_seq_length is {block_size}; the model attends to at most {config.block_size} tokens, give "
            f"1 to {config.block_size}"
        )
    return block_size


def plan_run(
    config: Config,
    train: TrainArgs,
    eval: EvalArgs,
    mixture: Mixture,
    val_blocks: int,
    parameters: int,
    devices: int = 1,
    peak_flops: float | None = None,
    teacher_flops: float = 0.0,
) -> RunPlan:
    """Work out a run's numbers.

    Args:
        config: the model's.
        mixture: the training data.
        val_blocks: samples in the validation data.
        parameters: parameters of the model, a tied head counted once.
        devices: over all nodes.
        peak_flops: of one device.
        teacher_flops: per token, for a teacher that runs along.

    Raises:
        UserError: the arguments contradict each other or make no run.
    """
    block_size = block_size_of(train, config)
    targets_per_step = train.global_batch_size * mixture.tokens_per_sample
    budget = _budget(train, targets_per_step, mixture)
    total_steps = int(budget // targets_per_step)
    if train.lr_warmup_steps + train.lr_decay_steps >= total_steps:
        decay = f" and --train.lr_decay_steps {train.lr_decay_steps}" if train.lr_decay_steps else ""
        raise UserError(
            f"--train.lr_warmup_steps {train.lr_warmup_steps}{decay} leave no step for the {train.schedule} schedule: "
            f"the run has {total_steps} steps; give fewer warm-up steps or a larger budget"
        )
    if eval.max_iters is not None:
        val_blocks = min(val_blocks, eval.max_iters * train.micro_batch_size)
    return RunPlan(
        total_steps=total_steps,
        budget=int(budget),
        tokens=int(total_steps * targets_per_step),
        accumulation=train.accumulation(devices),
        block_size=block_size,
        tokens_per_step=train.global_batch_size * block_size,
        val_blocks=val_blocks,
        parameters=parameters,
        flops_per_token=flops_per_token(config, block_size) + teacher_flops,
        peak_flops=peak_flops,
    )


def _budget(train: TrainArgs, targets_per_step: Fraction, mixture: Mixture) -> Fraction:
    """Tokens asked for, at least those of one step."""
    name, value = train.budget()
    units: dict[str, Fraction | int] = {"max_tokens": 1, "max_steps": targets_per_step, "epochs": mixture.tokens}
    unit = units[name]
    if value * unit < targets_per_step:
        raise UserError(
            f"--train.{name} {value} makes no optimizer step: a step takes {int(targets_per_step):,} tokens and the "
            f"data has {mixture.samples:,} samples; give a larger budget or a smaller --train.global_batch_size"
        )
    return value * Fraction(unit)


def plan_text(
    plan: RunPlan,
    name: str,
    train: TrainArgs,
    mixture: Mixture,
    changes: list[dict[str, Any]],
    device: str,
    memory: StepMemory,
    learns_from: str | None = None,
) -> str:
    """Returns lines that describe a run.

    Args:
        name: the model's.
        changes: of the run's data; the last one is shown.
        device: what it runs on, and in which precision.
        memory: predicted for a step.
        learns_from: the teacher, None without one.
    """
    samples = plan.total_steps * train.global_batch_size
    positions = plan.total_steps * plan.tokens_per_step
    left_over = f" ({plan.budget:,} asked for: whole steps only)" if plan.budget != plan.tokens else ""
    lines = [
        f"train {name}: {plan.parameters:,} parameters, {memory_text(memory)}",
        f"{plan.total_steps:,} steps of {plan.tokens_per_step:,} tokens = {positions:,} tokens",
    ]
    if plan.tokens < positions:
        lines[-1] += f", {1 - plan.tokens / positions:.1%} of them padding, leaves about {plan.tokens:,} tokens"
    lines[-1] += left_over
    if mixture.draws is None:
        lines[-1] += f", {samples / mixture.samples:.2f} epochs of {mixture.samples:,} samples"
    else:
        width = max(map(len, mixture.domains))
        lines += [
            f"  {domain:<{width}} {float(mixture.share(domain)):7.2%} of the samples, "
            f"{mixture.epochs(domain, samples):.2f} epochs of {size.samples:,}"
            for domain, size in mixture.domains.items()
        ]
    lines += [
        f"{plan.accumulation} micro-batches of {train.micro_batch_size} x {plan.block_size} per step, "
        f"{plan.val_blocks:,} samples per validation",
        f"{positions * plan.flops_per_token:.2e} FLOPs on {device}",
    ]
    if learns_from:
        lines.insert(1, f"learns from {learns_from}, its forward pass counted below")
    if changes:
        lines.append(f"data changed at sample {changes[-1]['sample']:,}, before: {'; '.join(changes[-1]['different'])}")
    return "\n      ".join(lines)


def memory_text(memory: StepMemory) -> str:
    """A step's memory in words."""
    model = memory.weights + memory.gradients + memory.optimizer
    batch = memory.total - model - memory.teacher
    teacher = f"{_size(memory.teacher)} teacher, " if memory.teacher else ""
    return f"{_size(memory.total)} ({_size(model)} model and optimizer, {teacher}{_size(batch)} per micro-batch)"


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"


@dataclass(frozen=True)
class ResourceEstimate:
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
        plan: RunPlan,
        args: TrainingArgs,
        precision: Precision,
        kernels: Kernels,
        device: torch.device,
        shards: int = 1,
        teacher: int = 0,
    ) -> "ResourceEstimate":
        """Predict a run's needs; ``shards`` devices share the parameters, and each holds the ``teacher``'s bytes."""

        def predict(speed: SpeedArgs) -> StepMemory:
            size = (plan.parameters, args.train.micro_batch_size, plan.block_size)
            memory = step_memory(config, *size, precision, speed, args.optimizer, kernels.loss, kernels.compiled)
            return replace(
                memory,
                weights=memory.weights // shards,
                gradients=memory.gradients // shards,
                optimizer=memory.optimizer // shards,
                teacher=teacher,
            )

        checkpointed = predict(replace(args.speed, activation_checkpointing=True))
        return cls(predict(args.speed), checkpointed, args.train, device)

    def warn(self) -> None:
        """Say what would help where the predicted memory is not there; the run still tries."""
        available = free_memory(self.device)
        if available is not None and self.memory.total > available:
            logger.warning(
                f"inheritune: warning: a step needs about {self.memory.total / 1e9:.1f} GB, {available / 1e9:.1f} GB "
                f"are free; {self._advice(available)}"
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
