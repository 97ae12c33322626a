"""What training a model costs: memory, micro-batches and hours per GPU, disk space; weights are never needed."""

import math
import os
import re
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import torch

import inheritune_lit as lit
from inheritune_lit.errors import UserError
from inheritune_lit.io.arguments import Precision
from inheritune_lit.references import REFERENCES, find_reference

_RECOMPUTING = 4 / 3  # activation checkpointing repeats the forward pass, a third of a step
_SLICING = re.compile(
    r"inheritune slice +(?:--ref +)?(\S+) +(?:--search +\S+ +)?--n +(\d{1,9}) +(?:--repair +\S+ +)?--out_dir +(\S+)"
)
CPU = "cpu"  # name of this machine's CPU among the GPUs


@dataclass(frozen=True)
class ModelSpec:
    """The shape of a model to train: its name for people, its configuration, and whether its head is the embedding."""

    title: str
    config: lit.Config
    tied: bool

    @classmethod
    def of_slice(cls, reference: lit.ReferenceModel, ref: str, n: int | None) -> "ModelSpec":
        """The first n layers of a reference, all when None; a ``UserError`` where it has fewer."""
        depth, config = reference.config.n_layer, reference.config
        if n is None:
            return cls(f"{ref}, all {depth} layers", config, reference.tied)
        config, _ = lit.student_config(reference, lit.SliceArgs(ref, n=n))
        return cls(f"{ref}, first {n} of {depth} layers", config, reference.tied)

    @classmethod
    def of_reference(cls, ref: str, n: int | None) -> "ModelSpec":
        """``of_slice`` of a reference by its name; where there is none of that name, a ``UserError``."""
        known = find_reference(ref)
        if known and (reference := lit.reference_from_table(known)):
            return cls.of_slice(reference, ref, n)
        with lit.resolve_reference(ref) as located:
            return cls.of_slice(located.reference, ref, n)

    @classmethod
    def of_checkpoint(cls, checkpoint_dir: Path, recipe: str = "") -> "ModelSpec":
        """A checkpoint folder, or what `inheritune slice` would write at this path; others are a ``UserError``.

        The comments of a recipe may say with which command that is.
        """
        if lit.is_litgpt_folder(checkpoint_dir):
            with lit.resolve_reference(str(checkpoint_dir)) as located:
                reference = located.reference
                return cls(reference.config.name, reference.config, reference.tied)
        if match := re.fullmatch(r"(.+)-(\d+)l(?:-[a-z]+)?", checkpoint_dir.name):
            for known in REFERENCES:
                if known.repository == f"{checkpoint_dir.parent.name}/{match[1]}":
                    return cls.of_reference(known.name, int(match[2]))
        made = {Path(out_dir): (ref, int(n)) for ref, n, out_dir in _SLICING.findall(recipe)}
        (_, n), ref = made.get(checkpoint_dir, ("", 0)), str(checkpoint_dir)
        while step := made.pop(Path(ref), None):  # a slice may be of a slice
            ref = step[0]
        if find_reference(ref):
            return cls.of_reference(ref, n)
        raise UserError(
            f"no checkpoint at {checkpoint_dir}, and neither its name nor a recipe tells which known reference it is "
            "of; make it with `inheritune slice`, or give --ref and --n"
        )

    @property
    def parameters(self) -> int:
        """Number of parameters, a tied head counted once."""
        return lit.count_parameters(lit.tensor_shapes(self.config, self.tied))

    @property
    def non_embedding_parameters(self) -> int:
        """Number of parameters without token embedding, learned positions and head."""
        return lit.count_parameters(lit.tensor_shapes(self.config, self.tied), embeddings=False)

    def first_layers(self, n: int) -> "ModelSpec":
        """The same model with its first n layers."""
        lists = {
            field: value[:n]
            for field in ("sliding_window_indices", "rope_indices", "attn_scale_layers")
            if (value := getattr(self.config, field, None)) is not None
        }
        return replace(self, config=replace(self.config, n_layer=n, **lists))


@dataclass(frozen=True)
class TrainingJob:
    """What is to be trained, and how."""

    model: ModelSpec
    tokens: int  # to train on, in all epochs
    block_size: int  # tokens per sample
    train: lit.TrainArgs
    optimizer: lit.OptimizerArgs = field(default_factory=lit.OptimizerArgs)
    speed: lit.SpeedArgs = field(default_factory=lit.SpeedArgs)
    precision: Precision = "bf16-mixed"
    mfu: float | None = None  # share of a GPU's peak that training reaches; None for the assumed one
    devices: int = 1  # GPUs that share the work
    unique_tokens: int | None = None  # tokens of the data on the disk, where that is known
    eval: lit.EvalArgs = field(default_factory=lit.EvalArgs)
    val_tokens: int | None = None  # tokens of the validation data, where that is known
    teacher: ModelSpec | None = None  # that runs along
    distill: lit.DistillArgs = field(default_factory=lit.DistillArgs)

    @property
    def trained(self) -> lit.TrainedModel:
        """The model, and which of its parameters are trained."""
        return lit.TrainedModel(self.model.config, self.model.tied, self.train.trainable)

    @property
    def flops_per_token(self) -> float:
        return self.trained.flops_per_token(self.block_size)

    @property
    def validation_flops(self) -> float | None:
        """FLOPs of all validations; None where neither recipe nor data tell how many samples each has."""
        there = None if self.val_tokens is None else self.val_tokens // self.block_size
        counts = [count for count in (self.eval.count(self.train.micro_batch_size), there) if count is not None]
        steps = self.tokens // (self.train.global_batch_size * self.block_size)
        samples = (self.model.config, self.eval, steps, self.block_size, min(counts, default=0))
        return lit.flops_of_validation(*samples) if counts else None

    @property
    def teacher_flops(self) -> float:
        """FLOPs of a teacher's forward passes."""
        if self.teacher is None:
            return 0.0
        return self.tokens * lit.flops_per_token(self.teacher.config, self.block_size, trained=())

    @property
    def flops(self) -> float:
        """FLOPs of the whole run: training, a teacher, validation; recomputing is not counted."""
        return self.tokens * self.flops_per_token + self.teacher_flops + (self.validation_flops or 0.0)

    def memory(self, micro_batch_size: int | None = None) -> lit.StepMemory:
        """Predicted memory of a step on one GPU with the kernels chosen there: compiled, whole logits."""
        batch, precision = micro_batch_size or self.train.micro_batch_size, self.precision
        loss, held, tokens = "distilled" if self.distill.active else "plain", 0, batch * self.block_size
        if self.teacher:
            aligned = self.model.config.n_layer if self.distill.align == "layers" else 0
            held = lit.teacher_bytes(self.teacher.config, self.teacher.parameters, tokens, precision, aligned)
        elif self.distill.active and self.distill.teacher_logits:
            held = lit.stored_bytes(self.distill.teacher_logits, tokens)
        settings = (self.trained, batch, self.block_size, precision, self.speed, self.optimizer, loss, True)
        return lit.step_memory(*settings, devices=self.devices, teacher=held)

    def seconds(self, gpu: lit.Gpu) -> float:
        """The run's duration on a kind of GPU."""
        rate = gpu.peak_flops * (self.mfu or lit.ASSUMED_MFU) * self.devices
        return self.flops * (_RECOMPUTING if self.speed.activation_checkpointing else 1.0) / rate

    def disk(self) -> tuple[int | None, int, int]:
        """Bytes on the disk: of packed data, None where its tokens are not known; of the state to continue from, twice
        while one replaces the other; of the final checkpoint and those that are kept."""
        width = 2 if self.model.config.padded_vocab_size <= 2**16 else 4
        data = None if self.unique_tokens is None else self.unique_tokens * width
        return data, *self.memory().kept_on_disk(self.train)


@dataclass(frozen=True)
class GpuFit:
    """A job on a kind of GPU."""

    gpu: lit.Gpu
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


def fit_gpu(asked: TrainingJob, gpu: lit.Gpu) -> GpuFit:
    """How a job fits a kind of GPU: as it is, or with recomputing, or with 8-bit optimizer state as well."""
    recomputing = replace(asked, speed=replace(asked.speed, activation_checkpointing=True))
    smallest = replace(recomputing, optimizer=replace(asked.optimizer, name="adamw8bit"))
    available, samples = int(gpu.memory * lit.USABLE_GPU_MEMORY), asked.train.global_batch_size // asked.devices
    for job in (asked, recomputing, smallest):
        if fits := lit.largest_micro_batch(available, job.memory(), job.train.micro_batch_size):
            return GpuFit(gpu, job, min(fits, samples), job.seconds(gpu) / 3600)
    return GpuFit(gpu, None, 0, math.inf)


@cache
def this_cpu(precision: Precision) -> lit.Gpu:
    """This machine's CPU as if it were a GPU; its peak is what a product of matrices reaches here, which is tried."""
    size, rates = 384, []  # a CPU without bf16 takes a second for it
    matrix = torch.ones(size, size, dtype=torch.float32 if precision == "32-true" else torch.bfloat16)
    for _ in range(4):
        start = time.perf_counter()
        matrix @ matrix
        rates.append(2 * size**3 / (time.perf_counter() - start))
    return lit.Gpu(CPU, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), max(rates))


def fit_time(job: TrainingJob, gpu: lit.Gpu, hours: float) -> tuple[float, int, int]:
    """What fits into a time limit on a kind of GPU: the share of the peak that the whole job would need, how many of
    the tokens fit, and the most layers with which all of them do; 0 where not even one does."""
    limit, seconds = hours * 3600, job.seconds(gpu)
    share, layers = seconds / limit, 0
    with suppress(UserError):  # a model of fewer layers may lack those that are to be trained
        depths = range(job.model.config.n_layer, 0, -1)
        fitting = (n for n in depths if replace(job, model=job.model.first_layers(n)).seconds(gpu) <= limit)
        layers = next(fitting, 0)
    return share * (job.mfu or lit.ASSUMED_MFU), int(job.tokens * min(1.0, 1 / share)), layers
