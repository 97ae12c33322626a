"""What training a model costs: memory by part, micro-batches, hours and money by card, disk."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from inheritune_lit.model.devices import USABLE
from inheritune_lit.model.flops import flops_per_token
from inheritune_lit.planning.model_spec import Subject
from inheritune_lit.train.args import OptimizerArgs, Precision, SpeedArgs, TrainArgs
from inheritune_lit.train.gpus import ASSUMED_MFU, Gpu
from inheritune_lit.train.memory import StepMemory, largest_micro_batch, step_memory

_RECOMPUTING = 4 / 3
"""Activation checkpointing repeats the forward pass, a third of a step."""


@dataclass(frozen=True)
class Job:
    """What is to be trained, and how.

    Attributes:
        subject: the model.
        tokens: to train on.
        unique_tokens: of data on the disk, fewer where it is gone through several times; None where not known.
        block_size: tokens a sample.
        train, optimizer, speed, precision: as ``inheritune pretrain`` takes them.
        mfu: share of a card's peak that is reached; None for the assumed one.
        devices: GPUs that share the work.
    """

    subject: Subject
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
        return flops_per_token(self.subject.config, self.block_size)

    @property
    def flops(self) -> float:
        """Of the whole run, recomputing not counted."""
        return self.tokens * self.flops_per_token

    @property
    def recomputes(self) -> bool:
        """Whether activations are recomputed in the backward pass."""
        return self.speed.activation_checkpointing

    def memory(self, micro_batch_size: int | None = None) -> StepMemory:
        """Predicted for a step on one GPU with kernels as they are chosen there: compiled, whole logits."""
        return step_memory(
            self.subject.config,
            self.subject.parameters,
            micro_batch_size or self.train.micro_batch_size,
            self.block_size,
            self.precision,
            self.speed,
            self.optimizer,
            "plain",
            compiled=True,
        )

    def largest_micro_batch(self, card: Gpu) -> int:
        """How many samples a forward pass fit into a card, at most those of a step."""
        fits = largest_micro_batch(int(card.memory * USABLE), self.memory(), self.train.micro_batch_size)
        return min(fits, self.train.global_batch_size // self.devices)

    def seconds(self, card: Gpu) -> float:
        """The run's duration on a kind of card."""
        rate = card.peak_flops * (self.mfu or ASSUMED_MFU) * self.devices
        return self.flops * (_RECOMPUTING if self.recomputes else 1.0) / rate

    def savers(self) -> Iterator["Job"]:
        """The same with less and less memory."""
        yield self
        recomputing = replace(self, speed=replace(self.speed, activation_checkpointing=True))
        yield recomputing
        yield replace(recomputing, optimizer=replace(self.optimizer, name="adamw8bit"))


@dataclass(frozen=True)
class OnCard:
    """A job on a kind of card.

    Attributes:
        job: as asked for, or with less memory where that is what fits; None where nothing does.
        micro_batch_size: largest that fits, 0 where none does.
        hours: of the whole run; infinite where nothing fits.
    """

    card: Gpu
    job: Job | None
    micro_batch_size: int
    hours: float

    @property
    def dividing_micro_batch(self) -> int:
        """The largest that divides a step's samples on each device, as training asks for; 0 where none fits."""
        if self.job is None:
            return 0
        samples = self.job.train.global_batch_size // self.job.devices
        return max(size for size in range(1, self.micro_batch_size + 1) if samples % size == 0)


def on_card(asked: Job, card: Gpu) -> OnCard:
    """What a job needs on a kind of card."""
    for job in asked.savers():
        if fits := job.largest_micro_batch(card):
            return OnCard(card, job, fits, job.seconds(card) / 3600)
    return OnCard(card, None, 0, math.inf)


@dataclass(frozen=True)
class Wish:
    """What a time has room for.

    Attributes:
        mfu: share of the peak that the whole job would take.
        tokens: that fit, of those asked for.
        n_layer: most layers with which all the tokens fit; 0 where not even one does.
    """

    mfu: float
    tokens: int
    n_layer: int


def within(job: Job, card: Gpu, hours: float) -> Wish:
    """What a time has room for on a kind of card."""
    wished, seconds = hours * 3600, job.seconds(card)
    depths = range(job.subject.config.n_layer, 0, -1)
    fitting = (n for n in depths if replace(job, subject=job.subject.at(n)).seconds(card) <= wished)
    share = seconds / wished
    return Wish(share * (job.mfu or ASSUMED_MFU), int(job.tokens * min(1.0, 1 / share)), next(fitting, 0))


@dataclass(frozen=True)
class Disk:
    """Bytes.

    Attributes:
        data: packed tokens; None where their number is not known.
        state: to continue from, twice while one replaces the other.
        checkpoints: the final one and those that are kept.
    """

    data: int | None
    state: int
    checkpoints: int


def disk_of(job: Job) -> Disk:
    """Disk space of a run."""
    memory = job.memory()
    kept = 1 + job.train.keep_last + 2 * job.train.keep_best
    width = 2 if job.subject.config.padded_vocab_size <= 2**16 else 4
    data = None if job.unique_tokens is None else job.unique_tokens * width
    return Disk(data, 2 * (memory.weights + memory.optimizer), kept * memory.weights)
