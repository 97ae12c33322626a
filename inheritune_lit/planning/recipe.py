"""``inheritune init``: a recipe for a reference, a GPU and a budget, with the commands that lead to it."""

import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from inheritune_lit import LONGEST_BLOCK, Gpu, OptimizerArgs, SpeedArgs, TrainArgs, UserError, find_gpus
from inheritune_lit.io.folders import make_folder, replace_text
from inheritune_lit.planning.args import InitArgs, parse_count
from inheritune_lit.planning.estimate import GpuFit, TrainingJob, fit_gpu
from inheritune_lit.planning.model_spec import ModelSpec, model_of_reference
from inheritune_lit.planning.plan import Plan

logger = logging.getLogger(__name__)
Answer = TypeVar("Answer")

_DATA_RECIPE, _DATA = "recipes/data/redpajama-1t-sample.yaml", "data/redpajama-1b"
_STEP_TOKENS = 131_072
"""The paper's batch: 64 samples of 2,048 tokens."""
_MOST_WARM_UP = 1000


@dataclass(frozen=True)
class InitResult:
    """A recipe that was written; ``str()`` of it is what the command prints.

    Attributes:
        out_file: the recipe.
        plan: what its run costs.
        commands: to run one after the other.
    """

    out_file: Path
    plan: Plan
    commands: tuple[str, ...]

    def __str__(self) -> str:
        commands = "\n".join(f"  {command}" for command in self.commands)
        return f"{self.plan}\n\nwrote {self.out_file}; run, one after the other:\n\n{commands}"


def init_recipe(args: InitArgs) -> InitResult:
    """Write a recipe; what is not given is asked for on a terminal, again after an answer that does not work.

    Raises:
        UserError: bad input, a model that fits the GPU in no way, or a file that is there already.
    """
    missing = [f"--{name}" for name in ("ref", "tokens", "gpu") if getattr(args, name) is None]
    if missing and not sys.stdin.isatty():
        raise UserError(f"{missing[0]} is missing; give it, or run this on a terminal to be asked")
    ref = _ask(args.ref, "reference, see `inheritune references`", "openllama-3b", _known_reference)
    model = _ask_model(ref, args.n)
    tokens = _ask(args.tokens, "tokens to train on", "8B", parse_count)
    gpu = _ask(args.gpu, "GPU, such as a6000, a100-80gb or h100", "a6000", lambda name: find_gpus(name)[0])
    name = model.config.hf_config["name"]
    out_file = args.out_file or Path("recipes") / f"{name}.yaml"
    if out_file.exists():
        raise UserError(f"{out_file} is there already; give another --out_file or remove it")
    fit = _fit(model, tokens, gpu)
    checkpoint = Path("checkpoints") / model.config.hf_config["org"] / name
    run, packed = Path("runs") / name, args.data or Path(_DATA)
    prepare = f"inheritune prepare --config {_DATA_RECIPE} --tokenizer_dir {checkpoint} --out_dir {packed}"
    commands = (
        f"inheritune slice --ref {ref} --n {model.config.n_layer} --out_dir {checkpoint}",
        *([prepare] if args.data is None else []),
        f"inheritune pretrain --config {out_file}",
        f"inheritune eval --checkpoint_dir {run / 'final'} --suite paper-table5 --out_dir {run / 'scores'}",
    )
    text = _recipe(fit, commands, checkpoint, packed, run)
    make_folder(out_file.parent, out_file)
    replace_text(out_file, text)
    assert fit.job is not None, "checked by _fit"
    return InitResult(out_file, Plan(fit.job, (fit,)), commands)


def _known_reference(ref: str) -> str:
    """The same name, after a look at the reference."""
    model_of_reference(ref, None)
    return ref


def _ask_model(ref: str, n: int | None) -> ModelSpec:
    depth = model_of_reference(ref, None).config.n_layer
    half = max(1, depth // 2)
    if n is None and not sys.stdin.isatty():
        n = half
    question = f"layers to take, of {depth} (the paper takes half)"
    return _ask(
        None if n is None else str(n), question, str(half), lambda text: model_of_reference(ref, _whole_number(text))
    )


def _whole_number(text: str) -> int:
    if not text.isdigit():
        raise UserError(f"{text!r} is not a whole number")
    return int(text)


def _ask(given: str | None, question: str, default: str, read: Callable[[str], Answer]) -> Answer:
    """What ``read`` makes of a given text; where none is given it is asked for until ``read`` takes the answer."""
    if given is not None:
        return read(given)
    while True:
        try:
            return read(input(f"{question} [{default}]: ").strip() or default)
        except UserError as error:
            logger.info("%s", error)


def _fit(model: ModelSpec, tokens: int, gpu: Gpu) -> GpuFit:
    """The job with the largest micro-batch that divides a step and fits the GPU."""
    block = min(model.config.block_size, LONGEST_BLOCK)
    batch = max(1, _STEP_TOKENS // block)
    steps = tokens // (batch * block)
    if steps < 2:
        raise UserError(f"--tokens {tokens:,} makes no run of steps of {batch * block:,} tokens; give more")
    train = TrainArgs(
        global_batch_size=batch,
        micro_batch_size=1,
        max_seq_length=block,
        max_tokens=tokens,
        lr_warmup_steps=min(_MOST_WARM_UP, steps // 10),
    )
    fit = fit_gpu(TrainingJob(model, tokens, None, block, train, OptimizerArgs(), SpeedArgs(), "bf16-mixed"), gpu)
    if fit.job is None:
        raise UserError(
            f"{model.title} does not fit --gpu {gpu.name} even with recomputing and 8-bit AdamW; give fewer layers "
            "with --n, or a larger GPU"
        )
    return replace(fit, job=replace(fit.job, train=replace(train, micro_batch_size=fit.dividing_micro_batch)))


def _recipe(fit: GpuFit, commands: Sequence[str], checkpoint: Path, data: Path, run: Path) -> str:
    job = fit.job
    assert job is not None
    train, model = job.train, job.model
    lines = [
        f"# {model.title}, {job.tokens:,} tokens on {fit.gpu.name}.",
        *(f"#   {command}" for command in commands),
        f"# {model.parameters:,} parameters, {job.flops:.1e} FLOPs: about {fit.hours:,.0f} hours at half of the",
        f"# GPU's peak, {job.memory().total / 1e9:.0f} GB of {fit.gpu.memory / 1e9:.0f}.",
        f"initial_checkpoint_dir: {checkpoint} # the slice",
        f"data: {data} # packed with its tokenizer",
        f"out_dir: {run} # the same command continues a stopped run",
        f"precision: {job.precision}",
        "seed: 1337",
        "train:",
        f"  global_batch_size: {train.global_batch_size} # of {job.block_size:,} tokens: the paper's 131K per step",
        f"  micro_batch_size: {train.micro_batch_size} # the largest that fits the GPU and divides a step",
        f"  max_seq_length: {job.block_size}",
        f"  max_tokens: {job.tokens} # the data is repeated where it has fewer",
        "  schedule: cosine",
        f"  lr_warmup_steps: {train.lr_warmup_steps}",
        "  min_lr: 3.0e-5",
        "  save_interval: 500",
        "eval:",
        "  interval: 500",
        "  max_iters: 128",
        "optimizer:",
        f"  name: {job.optimizer.name}",
        "  lr: 3.0e-4",
        "  weight_decay: 0.1",
    ]
    if job.recomputes:
        lines += ["speed:", "  activation_checkpointing: true # or it does not fit: a third more computation"]
    return "\n".join(lines) + "\n"
