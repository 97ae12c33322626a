"""``inheritune plan``: what a run costs, before anything is spent."""

import re
from dataclasses import replace
from pathlib import Path

from inheritune_lit.data.packed import load_packed_manifest
from inheritune_lit.errors import UserError
from inheritune_lit.model.flops import LONGEST_BLOCK
from inheritune_lit.parsing import read_recipe
from inheritune_lit.planning.estimate import Job, disk_of, on_card
from inheritune_lit.planning.model_spec import Subject, subject_of_checkpoint, subject_of_reference
from inheritune_lit.planning.text import plan_text
from inheritune_lit.train.args import OptimizerArgs, Precision, PretrainArgs, SpeedArgs, TrainArgs, at_depth
from inheritune_lit.train.gpus import find_gpus

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}


def plan(
    recipe: Path | None = None,
    ref: str | None = None,
    n: int | None = None,
    tokens: str | None = None,
    *,
    gpu: str | None = None,
    devices: int = 1,
    micro_batch_size: int | None = None,
    max_seq_length: int | None = None,
    precision: Precision | None = None,
    optimizer: str | None = None,
    activation_checkpointing: bool = False,
    mfu: float | None = None,
    price_per_hour: float | None = None,
    max_hours: float | None = None,
    measure: bool = False,
) -> str:
    """Work out a run's cost; no weights and no data are needed.

    Args:
        recipe: of ``inheritune pretrain``; its settings count where no other is given.
        ref, n: instead, or where the recipe's checkpoint is not there: a reference's first n layers (all when None).
        tokens: to train on, such as "8B"; None for the recipe's budget.
        gpu: a card's name; the usual ones when None.
        devices: cards that share the work.
        micro_batch_size, max_seq_length, precision, optimizer, activation_checkpointing: as in ``inheritune pretrain``.
        mfu: share of the peak that training reaches.
        price_per_hour: of one card.
        max_hours: time that is wished for.
        measure: time a few steps on this machine.

    Returns:
        The plan as text.

    Raises:
        UserError: bad input.
    """
    _check(devices=devices, micro_batch_size=micro_batch_size, max_seq_length=max_seq_length)
    _check(mfu=mfu, price_per_hour=price_per_hour, max_hours=max_hours)
    if mfu is not None and mfu > 1:
        raise UserError(f"--mfu is {mfu}; give a share of the card's peak, above 0 and at most 1")
    cards = find_gpus(gpu)
    if recipe is None and ref is None:
        raise UserError("nothing to plan; give --recipe, or --ref with --n and --tokens")
    settings = read_recipe(recipe, PretrainArgs, "pretrain") if recipe is not None else {}
    subject = _subject(settings, ref, n)
    train: TrainArgs = settings.get("train", TrainArgs())
    speed: SpeedArgs = settings.get("speed", SpeedArgs())
    adam: OptimizerArgs = settings.get("optimizer", OptimizerArgs())
    block = max_seq_length or train.max_seq_length or min(subject.config.block_size, LONGEST_BLOCK)
    if block > subject.config.block_size:
        raise UserError(f"--max_seq_length is {block}; the model attends to at most {subject.config.block_size} tokens")
    budget, unique = _tokens(tokens, train, settings.get("data"), block)
    if budget < train.global_batch_size * block:
        raise UserError(f"--tokens {tokens or budget} makes no step of {train.global_batch_size * block:,} tokens")
    if optimizer is not None and optimizer not in ("adamw", "adamw8bit") and "." not in optimizer:
        raise UserError(f"--optimizer is {optimizer!r}; give adamw, adamw8bit or the path of a class")
    micro = micro_batch_size or train.micro_batch_size
    if train.global_batch_size % (micro * devices):
        raise UserError(
            f"a step's {train.global_batch_size} samples are no multiple of a micro-batch of {micro} times {devices} "
            "devices; change --micro_batch_size or --devices"
        )
    job = Job(
        subject,
        budget,
        unique,
        block,
        replace(train, micro_batch_size=micro),
        replace(adam, name=optimizer or adam.name),
        replace(speed, activation_checkpointing=speed.activation_checkpointing or activation_checkpointing),
        precision or settings.get("precision") or "bf16-mixed",
        mfu,
        devices,
    )
    measured = None
    if measure:
        from inheritune_lit.planning.measure import measure as measure_steps

        measured = measure_steps(job)
    each = [on_card(job, card) for card in cards]
    return plan_text(job, disk_of(job), each, price_per_hour, max_hours, measured)


def _check(**numbers: float | None) -> None:
    for name, value in numbers.items():
        if value is not None and not 0 < value < float("inf"):
            raise UserError(f"--{name} is {value}; give a number above 0")


def _subject(settings: dict, ref: str | None, n: int | None) -> Subject:
    if ref is not None:
        return subject_of_reference(ref, n)
    path = Path(settings["initial_checkpoint_dir"])
    several = "{n}" in str(path)
    if n is not None and not several:
        raise UserError(f"--n {n} needs --ref: the recipe is for one depth, {path}")
    return subject_of_checkpoint(at_depth({"initial_checkpoint_dir": path}, n)["initial_checkpoint_dir"])


def _tokens(asked: str | None, train: TrainArgs, data: Path | None, block: int) -> tuple[int, int | None]:
    """Tokens to train on, and tokens of data where that is known."""
    there = None
    if data is not None and Path(data).is_dir():
        domains = load_packed_manifest(Path(data))["domains"]
        there = sum(record["train"]["tokens"] for record in domains.values())
    if asked is not None:
        budget = parse_count(asked)
        return budget, there or (budget // train.epochs if train.epochs else None)
    if train.max_tokens is not None:
        return train.max_tokens, there
    if train.max_steps is not None:
        return train.max_steps * train.global_batch_size * block, there
    if train.epochs is None:
        raise UserError("no budget; give --tokens, such as 8B")
    if there is None:
        raise UserError(f"the budget is {train.epochs} epochs of {data}, which is not there; give --tokens, such as 8B")
    return train.epochs * there, there


def parse_count(text: str) -> int:
    """``8B``, ``1.5b``, ``300M`` or ``1e9`` as a number.

    Raises:
        UserError: none of these.
    """
    match = re.fullmatch(r"(\d[\d_,]*\.?\d*(?:e\d+)?)([kmbt]?)", text.strip().lower())
    count = float(match[1].replace(",", "").replace("_", "")) * _UNITS[match[2]] if match else float("inf")
    if count == float("inf"):
        raise UserError(f"--tokens {text} is no number of tokens; give one such as 8B, 300M or 1e9")
    return round(count)
