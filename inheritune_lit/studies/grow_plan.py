"""What growing will do and cost at most, worked out before anything is spent."""

import math
from dataclasses import dataclass
from itertools import accumulate

from inheritune_lit.checkpoint.config import Config
from inheritune_lit.checkpoint.tensors import tensor_shapes
from inheritune_lit.data.mixture import Mixture
from inheritune_lit.errors import UserError
from inheritune_lit.evaluation.against_reference import Z
from inheritune_lit.inherit.grown import slice_options
from inheritune_lit.inherit.plan import student_config
from inheritune_lit.inherit.reference import ReferenceModel
from inheritune_lit.studies.grow_layers import Round
from inheritune_lit.studies.grow_training import Training
from inheritune_lit.train.plan import RunPlan, plan_run

_UTILISATION = 0.5


@dataclass(frozen=True)
class RoundPlan:
    """One round: its layers, and the run that trains it."""

    round: Round
    run: RunPlan

    @property
    def flops(self) -> float:
        """Of its training."""
        return self.run.total_steps * self.run.tokens_per_step * self.run.flops_per_token


def plan_rounds(
    reference: ReferenceModel,
    rounds: list[Round],
    attn_scale: str,
    training: Training,
    mixture: Mixture,
    val_blocks: int,
    devices: int,
    peak_flops: float | None,
) -> list[RoundPlan]:
    """Plan the run of every round.

    Args:
        mixture: the training data.
        val_blocks: samples in the validation data.
        devices: over all nodes.
        peak_flops: of one device.

    Raises:
        UserError: the training arguments make no run, or there are too few validation samples to compare on.
    """
    plans = []
    for one in rounds:
        config = student_config(reference, slice_options(one.layers, attn_scale))[0]
        parameters = parameters_of(config, reference.tied)
        arguments = (training.train, training.eval, mixture, val_blocks, parameters)
        plans.append(RoundPlan(one, plan_run(config, *arguments, devices=devices, peak_flops=peak_flops)))
    if (samples := plans[0].run.val_blocks) < 2:
        raise UserError(
            f"{training.data} and --eval.max_iters give {samples} validation sample; the comparison with the reference "
            "needs at least 2 for a standard error, and many for a small one"
        )
    return plans


def parameters_of(config: Config, tied: bool) -> int:
    """Parameters of a model, a tied head counted once."""
    return sum(math.prod(shape) for shape in tensor_shapes(config, tied).values())


def within_budget(plans: list[RoundPlan], max_flops: float | None) -> list[RoundPlan]:
    """The rounds whose training takes at most ``max_flops`` together.

    Raises:
        UserError: not even the first one does.
    """
    if max_flops is None:
        return plans
    spent = accumulate(plan.flops for plan in plans)
    kept = [plan for plan, flops in zip(plans, spent, strict=True) if flops <= max_flops]
    if not kept:
        raise UserError(
            f"--max_flops is {max_flops:g}; the first round alone takes {plans[0].flops:.2e}: give more, or a smaller "
            "training budget"
        )
    return kept


def plan_text(
    reference: ReferenceModel, plans: list[RoundPlan], new_layers: str, margin: float, machine: str, devices: int
) -> str:
    """Lines that tell the rounds and their cost."""
    config = reference.config
    kinds = {"next": "the reference's next", "own": "copies of the model's own last"}
    lines = [
        f"grow from {reference.name}: {config.n_layer} layers, width {config.n_embd}; new layers: "
        f"{kinds.get(new_layers, f'{new_layers} of the reference')}",
        f"until the loss on {plans[0].run.val_blocks:,} validation samples is at most {margin:g} nats above the "
        f"reference's with 95% confidence (difference + {Z} paired standard errors)",
    ]
    spent = 0.0
    for plan in plans:
        spent += plan.flops
        new = f", new: {_ranges(plan.round.layers[-plan.round.added :])}" if plan.round.added else ""
        lines.append(
            f"round {plan.round.number}: {len(plan.round.layers)} layers{new}, {plan.run.parameters:,} parameters, "
            f"{plan.run.tokens:,} tokens, {plan.flops:.2e} FLOPs{hours_text(plan.flops, plan.run.peak_flops, devices)}"
        )
    total = hours_text(spent, plans[0].run.peak_flops, devices)
    lines.append(f"at most {spent:.2e} FLOPs{total} on {machine}")
    return "\n     ".join(lines)


def hours_text(flops: float, peak_flops: float | None, devices: int) -> str:
    """Hours at half of the peak, where that is known."""
    if peak_flops is None:
        return ""
    return f", {flops / (_UTILISATION * peak_flops * devices) / 3600:,.1f} h at half of the peak"


def _ranges(layers: tuple[int, ...]) -> str:
    """``(3, 4, 5, 9)`` -> ``3-5,9``."""
    spans: list[list[int]] = []
    for layer in layers:
        if spans and layer == spans[-1][1] + 1:
            spans[-1][1] = layer
        else:
            spans.append([layer, layer])
    return ",".join(f"{first}-{last}" if last > first else str(first) for first, last in spans)
