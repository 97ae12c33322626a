"""What training a model costs: memory, micro-batches and hours per GPU, disk space."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from inheritune_lit import (
    ASSUMED_MFU,
    USABLE_GPU_MEMORY,
    Gpu,
    OptimizerArgs,
    SpeedArgs,
    StepMemory,
    TrainArgs,
    flops_per_token,
    largest_micro_batch,
    step_memory,
)
from inheritune_lit.io.arguments import Precision
from inheritune_lit.planning.model_spec import ModelSpec

_RECOMPUTING = 4 / 3
"""Activation checkpointing repeats the forward pass, a third of a step."""


@dataclass(frozen=True)
class TrainingJob:
    """What is to be trained, and how.

    Attributes:
        model: its shape.
        tokens: tokens to train on.
        unique_tokens: tokens of the data on the disk, fewer than ``tokens`` after several epochs; None where not known.
        block_size: tokens per sample.
        train, optimizer, speed, precision: as ``inheritune pretrain`` takes them.
        mfu: share of a GPU's peak that training reaches; None for the assumed one.
        devices: GPUs that share the work.
    """

    model: ModelSpec
    tokens: int
    unique_tokens: int | None
    block_size: int
    train: TrainArgs
    optimizer: OptimizerArgs
    speed: SpeedArgs
    precision: Precision
    mfu: float | None = None
    devices: int = 1

    @property
    def flops_per_token(self) -> float:
        return flops_per_token(self.model.config, self.block_size)

    @property
    def flops(self) -> float:
        """FLOPs of the whole run, recomputing not counted."""
        return self.tokens * self.flops_per_token

    @property
    def recomputes(self) -> bool:
        """Whether activations are recomputed in the backward pass."""
        return self.speed.activation_checkpointing

    def memory(self, micro_batch_size: int | None = None) -> StepMemory:
        """Predicted memory of a step on one GPU with the kernels chosen there: compiled, whole logits."""
        return step_memory(
            self.model.config,
            self.model.parameters,
            micro_batch_size or self.train.micro_batch_size,
            self.block_size,
            self.precision,
            self.speed,
            self.optimizer,
            "plain",
            compiled=True,
        )

    def largest_micro_batch(self, gpu: Gpu) -> int:
        """How many samples per forward pass fit into a GPU, at most those of a step."""
        fits = largest_micro_batch(int(gpu.memory * USABLE_GPU_MEMORY), self.memory(), self.train.micro_batch_size)
        return min(fits, self.train.global_batch_size // self.devices)

    def seconds(self, gpu: Gpu) -> float:
        """The run's duration on a kind of gpu."""
        rate = gpu.peak_flops * (self.mfu or ASSUMED_MFU) * self.devices
        return self.flops * (_RECOMPUTING if self.recomputes else 1.0) / rate

    def with_less_memory(self) -> Iterator["TrainingJob"]:
        """The job itself, then with recomputing, then with 8-bit optimizer state as well."""
        yield self
        recomputing = replace(self, speed=replace(self.speed, activation_checkpointing=True))
        yield recomputing
        yield replace(recomputing, optimizer=replace(self.optimizer, name="adamw8bit"))


@dataclass(frozen=True)
class GpuFit:
    """A job on a kind of GPU.

    Attributes:
        gpu: its kind.
        job: as asked for, or with less memory where only that fits; None where nothing does.
        micro_batch_size: largest that fits, 0 where none does.
        hours: of the whole run; infinite where nothing fits.
    """

    gpu: Gpu
    job: TrainingJob | None
    micro_batch_size: int
    hours: float

    @property
    def dividing_micro_batch(self) -> int:
        """The largest that divides a step's samples on each device, as training asks for; 0 where none fits."""
        if self.job is None:
            return 0
        samples = self.job.train.global_batch_size // self.job.devices
        return max(size for size in range(1, self.micro_batch_size + 1) if samples % size == 0)


def fit_gpu(asked: TrainingJob, gpu: Gpu) -> GpuFit:
    """How a job fits a kind of GPU."""
    for job in asked.with_less_memory():
        if fits := job.largest_micro_batch(gpu):
            return GpuFit(gpu, job, fits, job.seconds(gpu) / 3600)
    return GpuFit(gpu, None, 0, math.inf)


@dataclass(frozen=True)
class TimeBudget:
    """What fits into a time limit.

    Attributes:
        mfu: share of the peak that the whole job would need.
        tokens: how many of the tokens fit.
        n_layer: most layers with which all the tokens fit; 0 where not even one does.
    """

    mfu: float
    tokens: int
    n_layer: int


def fit_time(job: TrainingJob, gpu: Gpu, hours: float) -> TimeBudget:
    """What fits into a time limit on a kind of GPU."""
    limit, seconds = hours * 3600, job.seconds(gpu)
    depths = range(job.model.config.n_layer, 0, -1)
    fitting = (n for n in depths if replace(job, model=job.model.first_layers(n)).seconds(gpu) <= limit)
    share = seconds / limit
    return TimeBudget(share * (job.mfu or ASSUMED_MFU), int(job.tokens * min(1.0, 1 / share)), next(fitting, 0))


@dataclass(frozen=True)
class DiskSpace:
    """Bytes on the disk.

    Attributes:
        data: packed tokens; None where their number is not known.
        state: training state to continue from, twice while one replaces the other.
        checkpoints: the final one and those that are kept.
    """

    data: int | None
    state: int
    checkpoints: int

    @classmethod
    def of(cls, job: TrainingJob) -> "DiskSpace":
        """Disk space of a run."""
        memory = job.memory()
        kept = 1 + job.train.keep_last + 2 * job.train.keep_best
        width = 2 if job.model.config.padded_vocab_size <= 2**16 else 4
        data = None if job.unique_tokens is None else job.unique_tokens * width
        return cls(data, 2 * (memory.weights + memory.optimizer), kept * memory.weights)
