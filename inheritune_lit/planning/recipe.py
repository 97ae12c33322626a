"""``inheritune init``: a recipe for a reference, a card and a budget, with the commands that lead to it."""

import sys
from dataclasses import dataclass, replace
from pathlib import Path

from inheritune_lit.errors import UserError
from inheritune_lit.io.folders import make_folder, replace_text
from inheritune_lit.model.flops import LONGEST_BLOCK
from inheritune_lit.planning.estimate import Job, OnCard, disk_of, on_card
from inheritune_lit.planning.model_spec import Subject, subject_of_reference
from inheritune_lit.planning.plan import parse_count
from inheritune_lit.planning.text import plan_text
from inheritune_lit.train.args import OptimizerArgs, SpeedArgs, TrainArgs
from inheritune_lit.train.gpus import Gpu, find_gpus

_DATA_RECIPE, _DATA = "recipes/data/redpajama-1t-sample.yaml", "data/redpajama-1b"
_TOKENS_A_STEP = 131_072
"""The paper's batch: 64 samples of 2,048 tokens."""
_MOST_WARM_UP = 1000


@dataclass(frozen=True)
class Answers:
    """What is to be made.

    Attributes:
        ref: the reference.
        n: layers to take.
        tokens: to train on.
        card: to train on.
    """

    ref: str
    n: int
    tokens: int
    card: Gpu


def init_recipe(
    out_file: Path | None, ref: str | None, n: int | None, tokens: str | None, gpu: str | None, data: Path | None
) -> None:
    """Write a recipe, and print its plan and the commands to run; what is not given is asked for on a terminal.

    Args:
        out_file: the recipe; ``recipes/<name>.yaml`` when None.
        ref, n, tokens, gpu: see ``inheritune plan``.
        data: packed data that is there already; None for the paper's sample, which the commands then prepare.

    Raises:
        UserError: bad input, a model that no memory saving brings onto the card, or a file that is there.
    """
    answers = _ask(ref, n, tokens, gpu)
    subject = subject_of_reference(answers.ref, answers.n)
    name = subject.config.hf_config["name"]
    out_file = out_file or Path("recipes") / f"{name}.yaml"
    if out_file.exists():
        raise UserError(f"{out_file} is there already; give another --out_file or remove it")
    job, each = _fit(subject, answers)
    checkpoint = Path("checkpoints") / subject.config.hf_config["org"] / name
    run = Path("runs") / name
    packed = data or Path(_DATA)
    commands = [f"inheritune slice --ref {answers.ref} --n {answers.n} --out_dir {checkpoint}"]
    if data is None:
        commands.append(f"inheritune prepare --config {_DATA_RECIPE} --tokenizer_dir {checkpoint} --out_dir {packed}")
    commands.append(f"inheritune pretrain --config {out_file}")
    commands.append(f"inheritune eval --checkpoint_dir {run / 'final'} --suite paper-table5 --out_dir {run / 'scores'}")
    text = _recipe(job, each, subject, commands, checkpoint, packed, run)
    make_folder(out_file.parent, out_file)
    replace_text(out_file, text)
    print(plan_text(job, disk_of(job), [each], None, None, None))
    print(f"\nwrote {out_file}; run, one after the other:\n")
    print("\n".join(f"  {command}" for command in commands))


def _ask(ref: str | None, n: int | None, tokens: str | None, gpu: str | None) -> Answers:
    missing = [f"--{name}" for name, value in (("ref", ref), ("tokens", tokens), ("gpu", gpu)) if value is None]
    asks = sys.stdin.isatty()
    if missing and not asks:
        raise UserError(f"{missing[0]} is missing; give it, or run this on a terminal to be asked")
    ref = ref or _answer("reference, see `inheritune references`", "openllama-3b")
    depth = subject_of_reference(ref, None).config.n_layer
    if n is None:
        half = max(1, depth // 2)
        n = int(_answer(f"layers to take, of {depth} (the paper takes half)", str(half), str.isdigit)) if asks else half
    tokens = tokens or _answer("tokens to train on", "8B")
    gpu = gpu or _answer("card, such as a6000, a100-80gb or h100", "a6000")
    return Answers(ref, n, parse_count(tokens), find_gpus(gpu)[0])


def _answer(question: str, default: str, accepts=lambda text: True) -> str:
    while True:
        text = input(f"{question} [{default}]: ").strip() or default
        if accepts(text):
            return text
        print(f"{text!r} is not understood")


def _fit(subject: Subject, answers: Answers) -> tuple[Job, OnCard]:
    """The job with the largest micro-batch that divides a step and fits the card."""
    block = min(subject.config.block_size, LONGEST_BLOCK)
    batch = max(1, _TOKENS_A_STEP // block)
    steps = answers.tokens // (batch * block)
    if steps < 2:
        raise UserError(f"--tokens {answers.tokens:,} makes no run of steps of {batch * block:,} tokens; give more")
    train = TrainArgs(
        global_batch_size=batch,
        micro_batch_size=1,
        max_seq_length=block,
        max_tokens=answers.tokens,
        lr_warmup_steps=min(_MOST_WARM_UP, steps // 10),
    )
    asked = Job(subject, answers.tokens, None, block, train, OptimizerArgs(), SpeedArgs(), "bf16-mixed")
    each = on_card(asked, answers.card)
    if each.job is None:
        raise UserError(
            f"{subject.title} does not fit --gpu {answers.card.name} even with recomputing and 8-bit AdamW; give "
            "fewer layers with --n, or a larger card"
        )
    job = replace(each.job, train=replace(train, micro_batch_size=each.dividing_micro_batch))
    return job, replace(each, job=job)


def _recipe(
    job: Job, each: OnCard, subject: Subject, commands: list[str], checkpoint: Path, data: Path, run: Path
) -> str:
    train = job.train
    lines = [
        f"# {subject.title}, {job.tokens:,} tokens on {each.card.name}.",
        *(f"#   {command}" for command in commands),
        f"# {subject.parameters:,} parameters, {job.flops:.1e} FLOPs: about {each.hours:,.0f} hours at half of the",
        f"# card's peak, {job.memory().total / 1e9:.0f} GB of {each.card.memory / 1e9:.0f}.",
        f"initial_checkpoint_dir: {checkpoint} # the slice",
        f"data: {data} # packed with its tokenizer",
        f"out_dir: {run} # the same command continues a stopped run",
        f"precision: {job.precision}",
        "seed: 1337",
        "train:",
        f"  global_batch_size: {train.global_batch_size} # of {job.block_size:,} tokens: the paper's 131K a step",
        f"  micro_batch_size: {train.micro_batch_size} # the largest that fits the card and divides a step",
        f"  max_seq_length: {job.block_size}",
        f"  max_tokens: {job.tokens} # over and over the data where it has fewer",
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
        lines += ["speed:", "  activation_checkpointing: true # or it does not fit: a third more computing"]
    return "\n".join(lines) + "\n"
