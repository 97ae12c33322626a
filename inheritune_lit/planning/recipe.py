"""``inheritune init``: a recipe for a reference, a GPU and a budget, with the commands that lead to it."""

import json
import logging
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import inheritune_lit as lit
from inheritune_lit.errors import UserError
from inheritune_lit.io.folders import make_folder, replace_text
from inheritune_lit.planning.args import InitArgs, parse_count
from inheritune_lit.planning.estimate import ModelSpec, TrainingJob, fit_gpu
from inheritune_lit.planning.plan import Plan

logger = logging.getLogger(__name__)
Answer = TypeVar("Answer")

_DATA_RECIPE, _DATA = "recipes/data/redpajama-1t-sample.yaml", "data/redpajama-1b"
_STEP_TOKENS = 131_072  # the paper's batch: 64 samples of 2,048 tokens
_MOST_WARM_UP = 1000
_VALIDATION = lit.EvalArgs(interval=500, samples=512)


@dataclass(frozen=True)
class InitResult:
    """A recipe that was written, what its run costs, and the commands to run one after the other."""

    out_file: Path
    plan: Plan
    commands: tuple[str, ...]

    def __str__(self) -> str:
        commands = "\n".join(f"  {command}" for command in self.commands)
        return f"{self.plan}\n\nwrote {self.out_file}; run, one after the other:\n\n{commands}"


def init_recipe(args: InitArgs) -> InitResult:
    """Write a recipe; on a terminal what is not given is asked for, until it works; bad input is a ``UserError``."""
    asks = sys.stdin.isatty()
    missing = [f"--{name}" for name in ("ref", "tokens", "gpu") if getattr(args, name) is None]
    if missing and not asks:
        raise UserError(f"{missing[0]} is missing; give it, or run this on a terminal to be asked")
    which = "reference, see `inheritune references`"
    ref, whole = _ask(args.ref, which, "openllama-3b", lambda name: (name, ModelSpec.of_reference(name, None)))
    half = str(max(1, whole.config.n_layer // 2))
    n = str(args.n) if args.n is not None else None if asks else half
    question = f"layers to take, of {whole.config.n_layer} (the paper takes half)"
    model = _ask(n, question, half, lambda text: ModelSpec.of_reference(ref, _whole_number(text)))
    n_layer, depth = model.config.n_layer, whole.config.n_layer
    model = replace(model, title=f"{ref}, {n_layer} of {depth} layers")
    tokens = _ask(args.tokens, "tokens to train on", "8B", parse_count)
    gpu = _ask(args.gpu, "GPU, such as a6000, a100-80gb or h100", "a6000", lambda name: lit.find_gpus(name)[0])
    name = model.config.hf_config["name"]
    out_file = args.out_file or Path("recipes") / f"{name}.yaml"
    if out_file.exists():
        raise UserError(f"{out_file} is there already; give another --out_file or remove it")
    plan = _plan(model, tokens, gpu)
    checkpoints = Path("checkpoints") / model.config.hf_config["org"]
    checkpoint, searching = checkpoints / name, n_layer < depth
    reference = checkpoints / whole.config.hf_config["name"] if searching else checkpoint
    run, packed, search = Path("runs") / name, args.data or Path(_DATA), Path("searches") / name
    words = [
        ["slice", "--ref", ref, "--n", depth, "--out_dir", reference],
        ["prepare", "--config", _DATA_RECIPE, "--tokenizer_dir", reference, "--out_dir", packed],
        ["search", reference, "--data", packed, "--n_min", n_layer, "--out_dir", search],
        ["slice", reference, "--search", search, "--n", n_layer, "--out_dir", checkpoint],
        ["pretrain", "--config", out_file],
        ["eval", reference, run / "final", "--suite", "paper-table5", "--out_dir", run / "scores"],
    ]
    left_out = ["prepare"] * (args.data is not None) + ["search", "--search"] * (not searching)
    words = [each for each in words if not set(left_out).intersection(each)]
    commands = tuple(shlex.join(["inheritune", *map(str, each)]) for each in words)
    make_folder(out_file.parent, out_file)
    replace_text(out_file, _recipe(plan, commands, *(_quoted(path) for path in (checkpoint, packed, run))))
    return InitResult(out_file, plan, commands)


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


def _plan(model: ModelSpec, tokens: int, gpu: lit.Gpu) -> Plan:
    """The job with the largest micro-batch that divides a step and fits the GPU."""
    block = min(model.config.block_size, lit.LONGEST_BLOCK)
    batch = max(1, _STEP_TOKENS // block)
    steps = tokens // (batch * block)
    if steps < 2:
        raise UserError(f"--tokens {tokens:,} makes no run of steps of {batch * block:,} tokens; give more")
    warm_up = min(_MOST_WARM_UP, steps // 10)
    train = lit.TrainArgs(batch, micro_batch_size=1, max_seq_length=block, max_tokens=tokens, lr_warmup_steps=warm_up)
    fit = fit_gpu(TrainingJob(model, tokens, block, train, eval=_VALIDATION), gpu)
    if fit.job is None:
        problem = f"{model.title} does not fit --gpu {gpu.name} even with recomputing and 8-bit AdamW"
        raise UserError(f"{problem}; give fewer layers with --n, or a larger GPU")
    job = replace(fit.job, train=replace(train, micro_batch_size=fit.dividing_micro_batch))
    return Plan(job, (replace(fit, job=job, hours=job.seconds(gpu) / 3600),))


def _quoted(path: Path) -> str:
    """A path as YAML that is read as text, whatever it looks like."""
    return str(path) if re.fullmatch(r"[\w.-]*[A-Za-z][\w.-]*/[\w./-]+", str(path)) else json.dumps(str(path))


def _recipe(plan: Plan, commands: Sequence[str], checkpoint: str, data: str, run: str) -> str:
    job, (fit,) = plan.job, plan.gpus
    calls = "\n".join(f"#   {command}" for command in commands)
    needed, there = job.memory().total / 1e9, fit.gpu.memory / 1e9
    folders = {"checkpoint": checkpoint, "data": data, "run": run}
    template = Path(__file__).with_suffix(".txt").read_text(encoding="utf-8")
    text = template.format(plan=plan, job=job, fit=fit, calls=calls, needed=needed, there=there, **folders)
    if job.speed.activation_checkpointing:
        text += "speed:\n  activation_checkpointing: true # or it does not fit: a third more computation\n"
    return text
