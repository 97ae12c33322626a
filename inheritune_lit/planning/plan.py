"""``inheritune plan``: what a run costs, before anything is spent."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import inheritune_lit as lit
from inheritune_lit.errors import UserError
from inheritune_lit.io.reading import read_text
from inheritune_lit.planning.args import PlanArgs, parse_count
from inheritune_lit.planning.estimate import CPU, GpuFit, ModelSpec, TrainingJob, fit_gpu, fit_time, this_cpu
from inheritune_lit.references import find_reference
from inheritune_lit.resources import find_recipes

_CPU_FLOPS = 1e16  # of runs that a CPU is shown for: two days of a fast one


@dataclass(frozen=True)
class Plan:
    """What a run costs, and how it fits each kind of GPU; ``str()`` of it is what the command prints."""

    job: TrainingJob
    gpus: tuple[GpuFit, ...]
    price_per_hour: float | None = None  # of a GPU; None where it was not given, as the others
    max_hours: float | None = None
    measured: lit.MeasuredSteps | None = None  # on this machine

    @property
    def parameters(self) -> int:
        """Parameters of the model, a tied head counted once."""
        return self.job.model.parameters

    @property
    def flops(self) -> float:
        """FLOPs of the whole run."""
        return self.job.flops

    @property
    def hours(self) -> dict[str, float]:
        """Hours of the whole run by GPU, infinite where it does not fit."""
        return {each.gpu.name: each.hours for each in self.gpus}

    @property
    def memory(self) -> lit.StepMemory:
        """Memory of a step on one GPU by part, at the micro-batch of the job."""
        return self.job.memory()

    def __str__(self) -> str:
        job, model, train = self.job, self.job.model, self.job.train
        step = train.global_batch_size * job.block_size
        source = "as given with --mfu" if job.mfu else "assumed, not measured: --measure times this machine"
        several = f", {job.devices} GPUs of a kind" if job.devices > 1 else ""
        lines = [
            f"{model.title}: {model.parameters:,} parameters, {model.non_embedding_parameters:,} of them not "
            "embeddings or head",
            *([str(job.trained)] if train.trainable else []),
            f"{job.tokens:,} tokens in {job.tokens // step:,} steps of {train.global_batch_size} x "
            f"{job.block_size:,} = {step:,}",
            *_flops_lines(job),
            "",
            *_memory_and_disk(job),
            "",
            *_gpu_table(job, self.gpus, self.price_per_hour),
            "",
            f"hours at {job.mfu or lit.ASSUMED_MFU:.0%} of the GPUs' dense bf16 peak ({source}){several}",
            *(
                f"this CPU's peak is what a product of matrices reached here just now, in {each.job.precision}"
                for each in self.gpus
                if each.gpu.name == CPU and each.job
            ),
            f"of a GPU's memory {1 - lit.USABLE_GPU_MEMORY:.0%} is left to CUDA's context, workspace and fragments",
        ]
        if self.max_hours is not None:
            hours = f"in {self.max_hours:g} hour{'s' * (self.max_hours != 1)}:"
            lines += ["", hours, *(f"  {_time_text(each, self.max_hours)}" for each in self.gpus)]
        if self.measured is not None:
            lines += ["", _measured_text(job, self.measured)]
        return "\n".join(lines)


def plan(args: PlanArgs) -> Plan:
    """Estimate what a run costs; neither weights nor data are needed. Bad input is a ``UserError``."""
    settings, text = dict(vars(lit.TrainingArgs())), ""
    if args.recipe is not None:
        settings = lit.read_recipe(args.recipe, lit.PretrainArgs, "pretrain")
        text = read_text(Path(find_recipes(["--recipe", str(args.recipe)])[1]))
    model = _model(settings, args.ref, args.n, text)
    distill = replace(settings["distill"], teacher=args.teacher) if args.teacher else settings["distill"]
    teacher = _teacher(distill, text)
    train, speed, optimizer = (settings[group] for group in ("train", "speed", "optimizer"))
    block = args.max_seq_length or train.max_seq_length or min(model.config.block_size, lit.LONGEST_BLOCK)
    if block > model.config.block_size:
        raise UserError(f"--max_seq_length is {block}; the model attends to at most {model.config.block_size} tokens")
    tokens, unique, val_tokens = _tokens(args.tokens, train, settings.get("data"), block)
    if tokens < train.global_batch_size * block:
        raise UserError(f"--tokens {args.tokens or tokens} makes no step of {train.global_batch_size * block:,} tokens")
    train = replace(train, micro_batch_size=args.micro_batch_size or train.micro_batch_size)
    train = replace(train, trainable=args.trainable or train.trainable)
    train.accumulation(args.devices)
    optimizer = replace(optimizer, name=args.optimizer or optimizer.name)
    speed = replace(speed, activation_checkpointing=speed.activation_checkpointing or args.activation_checkpointing)
    precision = args.precision or settings["precision"] or "bf16-mixed"
    job = TrainingJob(model, tokens, block, train, optimizer, speed, precision, args.mfu, args.devices, unique)
    job = replace(job, eval=settings["eval"], val_tokens=val_tokens, teacher=teacher, distill=distill)
    measured = None
    if args.measure:
        training = lit.TrainingArgs(train=train, optimizer=optimizer, speed=speed)
        measured = lit.measure_steps(model.config, model.tied, block, training, precision, args.devices, job.flops)
    fits = [fit_gpu(job, gpu) for gpu in lit.find_gpus(args.gpu)] if args.gpu != CPU else []
    if args.gpu == CPU or (args.gpu is None and args.devices == 1 and job.flops < _CPU_FLOPS):
        choices = [replace(job, precision=each) for each in {precision: None, "32-true": None}]  # what is fast differs
        fits.append(min((fit_gpu(each, this_cpu(each.precision)) for each in choices), key=lambda each: each.hours))
    return Plan(job, tuple(fits), args.price_per_hour, args.max_hours, measured)


def _teacher(distill: lit.DistillArgs, recipe: str) -> ModelSpec | None:
    """The teacher that a flag or a recipe names; None where none runs along."""
    if not distill.active or distill.teacher is None:
        return None
    name = distill.teacher
    if find_reference(name) or Path(name).is_dir() or name.count("/") < 2:
        return ModelSpec.of_reference(name, None)
    return ModelSpec.of_checkpoint(Path(name), recipe)


def _model(settings: dict[str, Any], ref: str | None, n: int | None, recipe: str) -> ModelSpec:
    if ref is not None:
        return ModelSpec.of_reference(ref, n)
    if "initial_checkpoint_dir" not in settings:
        raise UserError("the recipe has no initial_checkpoint_dir; give it there, or --ref with --n")
    path = Path(settings["initial_checkpoint_dir"])
    if n is not None and "{n}" not in str(path):
        raise UserError(f"--n {n} needs --ref: the recipe is for one depth, {path}")
    at_n = lit.at_depth({"initial_checkpoint_dir": path}, n)["initial_checkpoint_dir"]
    return ModelSpec.of_checkpoint(at_n, recipe.replace("{n}", str(n)))


def _tokens(
    asked: str | None, train: lit.TrainArgs, data: Path | None, block: int
) -> tuple[int, int | None, int | None]:
    """Tokens to train on, and tokens of the data and of its validation part where that is known."""
    there = val = None
    if data is not None and data.is_dir():
        domains = lit.load_packed_manifest(data).domains.values()
        there, val = (sum(getattr(domain, split).tokens for domain in domains) for split in ("train", "val"))
    if asked is not None:
        budget = parse_count(asked)
        return budget, there or (budget // train.epochs if train.epochs else None), val
    if budget := train.max_tokens or (train.max_steps or 0) * train.global_batch_size * block:
        return budget, there, val
    if train.epochs is None:
        raise UserError("no budget; give --tokens, such as 8B")
    if there is None:
        raise UserError(f"the budget is {train.epochs} epochs of {data}, which is not there; give --tokens, such as 8B")
    return train.epochs * there, there, val


def _flops_lines(job: TrainingJob) -> list[str]:
    validation = f"validation besides, every {job.eval.interval:,} steps on the data's whole validation part"
    if job.validation_flops is not None:
        validation = f"{job.validation_flops / job.flops:.1%} for validation"
    teacher = f"{job.teacher_flops / job.flops:.1%} for the teacher, {job.teacher.title}, " if job.teacher else ""
    return [f"{job.flops_per_token / 1e9:.2f} GFLOP per token, {job.flops:.1e} in all", f"  {teacher}{validation}"]


def _memory_and_disk(job: TrainingJob) -> list[str]:
    memory, (data, state, checkpoints) = job.memory(), job.disk()
    parts = {
        "weights": memory.weights,
        "gradients": memory.gradients,
        f"{job.optimizer.name} state": memory.optimizer,
        "bf16 copies": memory.casts,
        "activations": memory.activations,
        "logits": memory.loss,
        "teacher": memory.teacher,
    }
    how = f"{job.precision}, compiled" + (", recomputing" if job.speed.activation_checkpointing else "")
    packed = f"{_size(data)} of packed data" if data is not None else "packed data besides"
    return [
        f"memory at a micro-batch of {job.train.micro_batch_size} ({how}): {_size(memory.total)}",
        "  " + ", ".join(f"{name} {_size(count)}" for name, count in parts.items() if count),
        f"disk: {_size((data or 0) + state + checkpoints)} ({packed}, {_size(state)} to continue from, "
        f"{_size(checkpoints)} of checkpoints; the raw text besides)",
    ]


def _gpu_table(job: TrainingJob, gpus: tuple[GpuFit, ...], price_per_hour: float | None) -> list[str]:
    samples = job.train.global_batch_size // job.devices
    rows = [["GPU", "memory", "largest micro-batch", f"dividing {samples}", "hours", "cost"]]
    for each in gpus:
        here = each.gpu.name == CPU
        cost = "-" if here else f"{each.hours * (price_per_hour or 0) * job.devices:,.0f}"
        fits, time = "does not fit", ["-", "-"]
        if each.job:
            recomputing = each.job.speed.activation_checkpointing and not job.speed.activation_checkpointing
            optimizer = each.job.optimizer.name
            less = [" recomputing"] * recomputing + [f" {optimizer}"] * (optimizer != job.optimizer.name)
            fits, time = f"{each.micro_batch_size}{','.join(less)}", [_hours(each.hours), cost]
        name, fitting = "this CPU" if here else each.gpu.name, str(each.dividing_micro_batch or "-")
        rows.append([name, _size(each.gpu.memory), fits, fitting, *time])
    rows = [row[:-1] if price_per_hour is None else row for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]


def _time_text(each: GpuFit, hours: float) -> str:
    name = each.gpu.name
    if each.job is None or each.hours <= hours:
        return f"{name}: yes, {_hours(each.hours)} hours" if each.job else f"{name}: does not fit"
    mfu, tokens, n_layer = fit_time(each.job, each.gpu, hours)
    reach = f"out of reach, {mfu:.1f} times" if mfu > 1 else f"only at {mfu:.0%} of"
    layers = f", or all of them with {n_layer} layer{'s' * (n_layer > 1)}" if n_layer else ""
    return f"{name}: {reach} the GPU's peak; what fits: {tokens / 1e9:.3g}B tokens{layers}"


def _measured_text(job: TrainingJob, measured: lit.MeasuredSteps) -> str:
    share = f", {measured.mfu:.0%} of its peak" if measured.mfu is not None else ""
    more = job.flops / (job.tokens * job.flops_per_token)  # for validation and a teacher
    hours = more * job.tokens / measured.tokens_per_s / 3600 / job.devices
    return (
        f"measured here ({measured.machine}): {measured.tokens_per_s:,.0f} tokens/s{share}, so {_hours(hours)} hours; "
        f"{_size(measured.memory)} of memory, {_size(measured.predicted)} predicted"
    )


def _hours(hours: float) -> str:
    return "< 0.1" if hours < 0.1 else f"{hours:,.0f}" if hours >= 10 else f"{hours:.2g}"


def _size(count: int) -> str:
    if count >= 1e10:
        return f"{count / 1e9:,.0f} GB"
    return f"{count / 1e9:.2g} GB" if count >= 1e9 else f"{count / 1e6:,.0f} MB"
