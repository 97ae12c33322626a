"""``inheritune plan`` and ``init``."""

from pathlib import Path
from typing import Literal


def list_recipes_command() -> None:
    """List the recipes that come with the program, as --config takes them, with the command each is for."""
    from inheritune_lit.resources import recipe_table

    print(recipe_table())


def plan_command(
    recipe: Path | None = None,
    ref: str | None = None,
    n: int | None = None,
    tokens: str | None = None,
    gpu: str | None = None,
    devices: int = 1,
    micro_batch_size: int | None = None,
    max_seq_length: int | None = None,
    precision: Literal["32-true", "bf16-mixed", "bf16-true"] | None = None,
    optimizer: str | None = None,
    activation_checkpointing: bool = False,
    mfu: float | None = None,
    price_per_hour: float | None = None,
    max_hours: float | None = None,
    measure: bool = False,
) -> None:
    """Say what a run costs: parameters, FLOPs, memory by part, micro-batches and hours by card, disk.

    Neither weights nor data need to be there.

    Args:
        recipe: YAML file of ``inheritune pretrain``; what it says counts where no other flag is given.
        ref: instead of a recipe, or where its checkpoint is not there: a reference, as in ``inheritune slice``.
        n: its first n layers; all when not given. With a recipe for several depths, the depth.
        tokens: to train on, such as 8B or 300M; the recipe's budget when not given.
        gpu: rtx3090, rtx4090, l4, a10g, a100-40gb, a6000, l40s, a100-80gb, h100, h200 or b200; the usual ones when not
            given.
        devices: cards that share the work.
        micro_batch_size: samples a forward pass.
        max_seq_length: tokens a sample; 2048 or the model's block size when not given.
        precision: bf16-mixed when not given.
        optimizer: adamw or adamw8bit.
        activation_checkpointing: recompute activations in the backward pass.
        mfu: share of the card's peak that training reaches; 0.5 is assumed when not given.
        price_per_hour: of one card, in any currency.
        max_hours: time that is wished for: says whether it is within reach, and what fits instead.
        measure: train a model of this shape for a few steps on this machine, and go by that.
    """
    from inheritune_lit.planning.plan import plan as run

    print(
        run(
            recipe,
            ref,
            n,
            tokens,
            gpu=gpu,
            devices=devices,
            micro_batch_size=micro_batch_size,
            max_seq_length=max_seq_length,
            precision=precision,
            optimizer=optimizer,
            activation_checkpointing=activation_checkpointing,
            mfu=mfu,
            price_per_hour=price_per_hour,
            max_hours=max_hours,
            measure=measure,
        )
    )


def init_command(
    out_file: Path | None = None,
    ref: str | None = None,
    n: int | None = None,
    tokens: str | None = None,
    gpu: str | None = None,
    data: Path | None = None,
) -> None:
    """Write a recipe for a reference, a card and a budget, and say which commands to run. Asks what is not given.

    Args:
        out_file: the recipe; recipes/<name>.yaml when not given.
        ref: the reference, as in ``inheritune slice``.
        n: its first n layers; half of them when not given.
        tokens: to train on, such as 8B or 300M.
        gpu: the card, as in ``inheritune plan``.
        data: packed data that is there already; the paper's sample of RedPajama when not given.
    """
    from inheritune_lit.planning.recipe import init_recipe

    init_recipe(out_file, ref, n, tokens, gpu, data)
