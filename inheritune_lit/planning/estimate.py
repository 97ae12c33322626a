"""What training a model costs: memory, micro-batches and hours per GPU, disk space; weights are never needed."""

import math
import os
import re
import time
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import torch

from inheritune_lit import (
    ASSUMED_MFU,
    USABLE_GPU_MEMORY,
    Config,
    EvalArgs,
    Gpu,
    OptimizerArgs,
    ReferenceModel,
    SliceArgs,
    SpeedArgs,
    StepMemory,
    TrainArgs,
    UserError,
    count_parameters,
    flops_of_validation,
    flops_per_token,
    is_litgpt_folder,
    largest_micro_batch,
    reference_from_table,
    resolve_reference,
    step_memory,
    student_config,
    teacher_bytes,
    tensor_shapes,
)
from inheritune_lit.io.arguments import Precision
from inheritune_lit.references import REFERENCES, find_reference

_RECOMPUTING = 4 / 3
"""Activation checkpointing repeats the forward pass, a third of a step."""


_SLICING = re.compile(r"inheritune slice +(?:--ref +)?(\S+) +--n +(\d{1,9}) +--out_dir +(\S+)")
CPU = "cpu"
"""Name of this machine's CPU among the GPUs."""


@dataclass(frozen=True)
class ModelSpec:
    """The shape of a model to train: its name for people, its configuration, and whether its head is the embedding."""

    title: str
    config: Config
    tied: bool

    @classmethod
    def of_slice(cls, reference: ReferenceModel, ref: str, n: int) -> "ModelSpec":
        """The first n layers of a reference; a ``UserError`` where it has fewer."""
        config, _ = student_config(reference, SliceArgs(ref, n=n))
        return cls(f"{ref}, first {n} of {reference.config.n_layer} layers", config, reference.tied)

    @property
    def parameters(self) -> int:
        """Number of parameters, a tied head counted once."""
        return count_parameters(tensor_shapes(self.config, self.tied))

    @property
    def non_embedding_parameters(self) -> int:
        """Number of parameters without token embedding, learned positions and head."""
        return count_parameters(tensor_shapes(self.config, self.tied), embeddings=False)

    def first_layers(self, n: int) -> "ModelSpec":
        """The same model with its first n layers."""
        lists = {
            field: value[:n]
            for field in ("sliding_window_indices", "rope_indices", "attn_scale_layers")
            if (value := getattr(self.config, field, None)) is not None
        }
        return replace(self, config=replace(self.config, n_layer=n, **lists))


def model_of_reference(ref: str, n: int | None) -> ModelSpec:
    """A reference, or its first n layers.

    Raises:
        UserError: there is no such reference, or it has fewer layers.
    """
    known = find_reference(ref)
    reference = reference_from_table(known) if known else None
    if reference is None:
        with resolve_reference(ref) as located:
            reference = located.reference
    if n is None:
        return ModelSpec(f"{ref}, all {reference.config.n_layer} layers", reference.config, reference.tied)
    return ModelSpec.of_slice(reference, ref, n)


def model_of_checkpoint(checkpoint_dir: Path, recipe: str = "") -> ModelSpec:
    """A checkpoint folder; where it is not there yet, what `inheritune slice` would write at this path.

    Args:
        recipe: whose comments may say with which command that is.

    Raises:
        UserError: neither.
    """
    if is_litgpt_folder(checkpoint_dir):
        with resolve_reference(str(checkpoint_dir)) as located:
            reference = located.reference
            return ModelSpec(reference.config.name, reference.config, reference.tied)
    if match := re.fullmatch(r"(.+)-(\d+)l(?:-[a-z]+)?", checkpoint_dir.name):
        for known in REFERENCES:
            if known.repository == f"{checkpoint_dir.parent.name}/{match[1]}":
                return model_of_reference(known.name, int(match[2]))
    for ref, n, out_dir in _SLICING.findall(recipe):
        if find_reference(ref) and Path(out_dir) == checkpoint_dir:
            return model_of_reference(ref, int(n))
    raise UserError(
        f"no checkpoint at {checkpoint_dir}, and neither its name nor a recipe tells which known reference it is of; "
        "make it with `inheritune slice`, or give --ref and --n"
    )


@dataclass(frozen=True)
class TrainingJob:
    """What is to be trained, and how."""

    model: ModelSpec
    tokens: int  # to train on, in all epochs
    block_size: int  # tokens per sample
    train: TrainArgs
    optimizer: OptimizerArgs = field(default_factory=OptimizerArgs)
    speed: SpeedArgs = field(default_factory=SpeedArgs)
    precision: Precision = "bf16-mixed"
    mfu: float | None = None  # share of a GPU's peak that training reaches; None for the assumed one
    devices: int = 1  # GPUs that share the work
    unique_tokens: int | None = None  # tokens of the data on the disk, where that is known
    eval: EvalArgs = field(default_factory=EvalArgs)
    val_tokens: int | None = None  # tokens of the validation data, where that is known
    teacher: ModelSpec | None = None  # that runs along

    @property
    def flops_per_token(self) -> float:
        return flops_per_token(self.model.config, self.block_size)

    @property
    def validation_flops(self) -> float | None:
        """FLOPs of all validations; None where neither recipe nor data tell how many samples each has."""
        asked = self.eval.max_iters and self.eval.max_iters * self.train.micro_batch_size
        there = None if self.val_tokens is None else self.val_tokens // self.block_size
        if asked is None and there is None:
            return None
        samples = min(count for count in (asked, there) if count is not None)
        steps = self.tokens // (self.train.global_batch_size * self.block_size)
        return flops_of_validation(self.model.config, self.eval, steps, self.block_size, samples)

    @property
    def teacher_flops(self) -> float:
        """FLOPs of a teacher's forward passes."""
        return self.tokens * flops_per_token(self.teacher.config, self.block_size) / 3 if self.teacher else 0.0

    @property
    def flops(self) -> float:
        """FLOPs of the whole run: training, a teacher, validation; recomputing is not counted."""
        return self.tokens * self.flops_per_token + self.teacher_flops + (self.validation_flops or 0.0)

    @property
    def recomputes(self) -> bool:
        """Whether activations are recomputed in the backward pass."""
        return self.speed.activation_checkpointing

    def memory(self, micro_batch_size: int | None = None) -> StepMemory:
        """Predicted memory of a step on one GPU with the kernels chosen there: compiled, whole logits."""
        config, parameters = self.model.config, self.model.parameters
        batch = micro_batch_size or self.train.micro_batch_size
        settings = (self.precision, self.speed, self.optimizer)
        loss, held, tokens = "plain", 0, batch * self.block_size
        if self.teacher:
            held = teacher_bytes(self.teacher.config, self.teacher.parameters, tokens, self.precision)
            loss = "distilled"
        return step_memory(
            config, parameters, batch, self.block_size, *settings, loss_kernel=loss, compiled=True, teacher=held
        )

    def seconds(self, gpu: Gpu) -> float:
        """The run's duration on a kind of GPU."""
        rate = gpu.peak_flops * (self.mfu or ASSUMED_MFU) * self.devices
        return self.flops * (_RECOMPUTING if self.recomputes else 1.0) / rate

    def disk(self) -> "DiskSpace":
        """Disk space of the run."""
        memory = self.memory()
        kept = 1 + self.train.keep_last + 2 * self.train.keep_best
        width = 2 if self.model.config.padded_vocab_size <= 2**16 else 4
        data = None if self.unique_tokens is None else self.unique_tokens * width
        return DiskSpace(data, 2 * (memory.weights + memory.optimizer), kept * memory.weights)


@dataclass(frozen=True)
class DiskSpace:
    """Bytes on the disk."""

    data: int | None  # packed tokens, where their number is known
    state: int  # to continue from, twice while one replaces the other
    checkpoints: int  # the final one and those that are kept


@dataclass(frozen=True)
class GpuFit:
    """A job on a kind of GPU."""

    gpu: Gpu
    job: TrainingJob | None  # as asked for, or with less memory where only that fits; None where nothing does
    micro_batch_size: int  # largest that fits, 0 where none does
    hours: float  # of the whole run; infinite where nothing fits

    @property
    def dividing_micro_batch(self) -> int:
        """The largest that divides a step's samples on each device, as training asks for; 0 where none fits."""
        if self.job is None:
            return 0
        samples = self.job.train.global_batch_size // self.job.devices
        return max(size for size in range(1, self.micro_batch_size + 1) if samples % size == 0)


def fit_gpu(asked: TrainingJob, gpu: Gpu) -> GpuFit:
    """How a job fits a kind of GPU: as it is, or with recomputing, or with 8-bit optimizer state as well."""
    recomputing = replace(asked, speed=replace(asked.speed, activation_checkpointing=True))
    smallest = replace(recomputing, optimizer=replace(asked.optimizer, name="adamw8bit"))
    available, samples = int(gpu.memory * USABLE_GPU_MEMORY), asked.train.global_batch_size // asked.devices
    for job in (asked, recomputing, smallest):
        if fits := largest_micro_batch(available, job.memory(), job.train.micro_batch_size):
            return GpuFit(gpu, job, min(fits, samples), job.seconds(gpu) / 3600)
    return GpuFit(gpu, None, 0, math.inf)


@cache
def this_cpu(precision: Precision) -> Gpu:
    """This machine's CPU as if it were a GPU; its peak is what a product of matrices reaches here, which is tried."""
    size, rates = 384, []  # a CPU without bf16 takes a second for it
    matrix = torch.ones(size, size, dtype=torch.float32 if precision == "32-true" else torch.bfloat16)
    for _ in range(4):
        start = time.perf_counter()
        matrix @ matrix
        rates.append(2 * size**3 / (time.perf_counter() - start))
    return Gpu(CPU, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), max(rates))


@dataclass(frozen=True)
class TimeBudget:
    """What fits into a time limit."""

    mfu: float  # share of the peak that the whole job would need
    tokens: int  # how many of the tokens fit
    n_layer: int  # most layers with which all the tokens fit; 0 where not even one does


def fit_time(job: TrainingJob, gpu: Gpu, hours: float) -> TimeBudget:
    """What fits into a time limit on a kind of GPU."""
    limit, seconds = hours * 3600, job.seconds(gpu)
    depths = range(job.model.config.n_layer, 0, -1)
    fitting = (n for n in depths if replace(job, model=job.model.first_layers(n)).seconds(gpu) <= limit)
    share = seconds / limit
    return TimeBudget(share * (job.mfu or ASSUMED_MFU), int(job.tokens * min(1.0, 1 / share)), next(fitting, 0))
