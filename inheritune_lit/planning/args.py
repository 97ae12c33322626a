"""Arguments of ``inheritune plan`` and ``init``. Free of torch, so that help and errors are instant."""

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Literal

from inheritune_lit.io.arguments import CommandArgs


@dataclass(frozen=True)
class PlanArgs(CommandArgs):
    """Say what a run costs: parameters, FLOPs, memory by part, micro-batches and hours by card, disk.

    Neither weights nor data need to be there.
    """

    recipe: Path | None = None
    """YAML file of ``inheritune pretrain``; what it says counts where no other flag is given."""
    ref: str | None = None
    """Instead of a recipe, or where its checkpoint is not there: a reference, as in ``inheritune slice``."""
    n: int | None = None
    """Its first n layers; all when not given. With a recipe for several depths, the depth."""
    tokens: str | None = None
    """To train on, such as 8B or 300M; the recipe's budget when not given."""
    _: KW_ONLY
    gpu: str | None = None
    """Rtx3090, rtx4090, l4, a10g, a100-40gb, a6000, l40s, a100-80gb, h100, h200 or b200; the usual ones when not
    given."""
    devices: int = 1
    """Cards that share the work."""
    micro_batch_size: int | None = None
    """Samples a forward pass."""
    max_seq_length: int | None = None
    """Tokens a sample; 2048 or the model's block size when not given."""
    precision: Literal["32-true", "bf16-mixed", "bf16-true"] | None = None
    """Bf16-mixed when not given."""
    optimizer: str | None = None
    """Adamw or adamw8bit."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass."""
    mfu: float | None = None
    """Share of the card's peak that training reaches; 0.5 is assumed when not given."""
    price_per_hour: float | None = None
    """Of one card, in any currency."""
    max_hours: float | None = None
    """Time that is wished for: says whether it is within reach, and what fits instead."""
    measure: bool = False
    """Train a model of this shape for a few steps on this machine, and go by that."""


@dataclass(frozen=True)
class InitArgs(CommandArgs):
    """Write a recipe for a reference, a card and a budget, and say which commands to run. Asks what is not given."""

    ref: str | None = None
    """The reference, as in ``inheritune slice``."""
    n: int | None = None
    """Its first n layers; half of them when not given."""
    tokens: str | None = None
    """To train on, such as 8B or 300M."""
    gpu: str | None = None
    """The card, as in ``inheritune plan``."""
    data: Path | None = None
    """Packed data that is there already; the paper's sample of RedPajama when not given."""
    out_file: Path | None = None
    """The recipe; recipes/<name>.yaml when not given."""
