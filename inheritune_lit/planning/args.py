"""Arguments of ``inheritune plan`` and ``init``. Free of torch, so that help and errors are instant."""

import math
import re
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import ClassVar, Literal

from inheritune_lit import UserError, find_gpus
from inheritune_lit.io.arguments import CommandArgs, check_numbers

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}


@dataclass(frozen=True)
class PlanArgs(CommandArgs):
    """Estimate what a run costs: parameters, FLOPs, memory by part, micro-batches and hours per GPU, disk space.

    Neither weights nor data need to be there.
    """

    aliases: ClassVar[dict[str, str]] = {"distill.teacher": "teacher"} | {
        f"train.{name}": name for name in ("trainable", "micro_batch_size", "max_seq_length")
    }

    ref: str | None = None
    """A reference, as in ``inheritune slice``, or a recipe: a YAML file of ``inheritune pretrain``."""
    n: int | None = None
    """Its first n layers; all when not given. With a recipe for several depths, the depth."""
    tokens: str | None = None
    """Tokens to train on, such as 8B or 300M; the recipe's budget when not given."""
    recipe: Path | None = None
    """A recipe, whose settings hold where no other flag is given; with ref, for the reference instead of the recipe's
    checkpoint."""
    _: KW_ONLY
    gpu: str | None = None
    """GPU: rtx3090, rtx4090, l4, a10g, rtx5090, a100-40gb, a40, a6000, l40, l40s, rtx6000-ada, a100-80gb, h100,
    rtx-pro-6000, h20, h200-nvl, h200 or b200, or this machine's cpu; the usual ones when not given."""
    teacher: str | None = None
    """A teacher that runs along, as pretrain takes with --distill.teacher; the recipe's when not given."""
    trainable: str | None = None
    """What is trained, as pretrain takes with --train.trainable; the recipe's when not given."""
    devices: int = 1
    """GPUs that share the work."""
    micro_batch_size: int | None = None
    """Samples per forward pass."""
    max_seq_length: int | None = None
    """Tokens per sample; 2048 or the model's block size when not given."""
    precision: Literal["32-true", "bf16-mixed", "bf16-true"] | None = None
    """bf16-mixed when not given."""
    optimizer: str | None = None
    """adamw, adamw8bit or the path of a class."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass."""
    mfu: float | None = None
    """Share of the GPU's peak that training reaches; 0.5 is assumed when not given."""
    price_per_hour: float | None = None
    """Price of one GPU, in any currency."""
    max_hours: float | None = None
    """Time limit: tells whether the run fits into it, and what fits instead."""
    measure: bool = False
    """Train a model of this shape for a few steps on this machine, and add what was measured."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ref is not None and str(self.ref).endswith((".yaml", ".yml")):
            if self.recipe is not None:
                raise UserError(f"two recipes, {self.ref} and {self.recipe}; give one")
            object.__setattr__(self, "recipe", Path(self.ref))
            object.__setattr__(self, "ref", None)
        if self.ref is None and self.recipe is None:
            raise UserError("nothing to plan; give --recipe, or --ref with --n and --tokens")
        check_numbers(self, "n", "devices", "micro_batch_size", "max_seq_length", "price_per_hour", "max_hours")
        check_numbers(self, "mfu", most=1)
        if self.optimizer not in (None, "adamw", "adamw8bit") and "." not in str(self.optimizer):
            raise UserError(f"--optimizer is {self.optimizer!r}; give adamw, adamw8bit or the path of a class")
        if self.tokens is not None:
            parse_count(self.tokens)
        if self.gpu != "cpu":
            find_gpus(self.gpu)


@dataclass(frozen=True)
class InitArgs(CommandArgs):
    """Write a recipe for a reference, a GPU and a budget, with the commands to run. Asks for what is not given."""

    ref: str | None = None
    """The reference, as in ``inheritune slice``."""
    n: int | None = None
    """Its first n layers; half of them when not given."""
    tokens: str | None = None
    """Tokens to train on, such as 8B or 300M."""
    gpu: str | None = None
    """GPU, as in ``inheritune plan``."""
    data: Path | None = None
    """Packed data that is there already; the paper's sample of RedPajama when not given."""
    out_file: Path | None = None
    """The recipe; recipes/<name>.yaml when not given."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, "n", least=1)
        if self.tokens is not None:
            parse_count(self.tokens)
        find_gpus(self.gpu)
        if self.out_file is not None and self.out_file.exists():
            raise UserError(f"{self.out_file} is there already; give another --out_file or remove it")


def parse_count(text: str) -> int:
    """``8B``, ``1.5b``, ``300M`` or ``1e9`` as a number; other text is a ``UserError``."""
    match = re.fullmatch(r"(\d[\d_,]*\.?\d*(?:e\d+)?)([kmbt]?)", str(text).strip().lower())
    count = float(match[1].replace(",", "").replace("_", "")) * _UNITS[match[2]] if match else math.inf
    if count == math.inf:
        raise UserError(f"--tokens {text} is not a number of tokens; give one such as 8B, 300M or 1e9")
    return round(count)
