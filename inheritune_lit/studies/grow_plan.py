"""What growing will do and cost at most: layers of every round and the run that trains it."""

from dataclasses import dataclass, fields, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric

from inheritune_lit import (
    ASSUMED_MFU,
    WEIGHTS,
    PackedDataset,
    PretrainArgs,
    ResolvedReference,
    RunPlan,
    TrainingArgs,
    Z,
    attn_scale_of,
    build_fabric,
    check_fits_model,
    check_start,
    count_parameters,
    data_settings,
    default_precision,
    layers_of,
    make_mixture,
    parse_layers,
    peak_flops,
    plan_run,
    sample_length,
    slice_options,
    student_config,
    tensor_shapes,
    training_settings,
)
from inheritune_lit.errors import UserError
from inheritune_lit.io.manifest import sha256_file
from inheritune_lit.studies.args import GrowArgs


@dataclass(frozen=True)
class Round:
    """One round.

    Attributes:
        number: from 1.
        layers: the reference's layer behind each layer of the model.
        added: how many of them, the last ones, are new.
    """

    number: int
    layers: tuple[int, ...]
    added: int

    @property
    def name(self) -> str:
        """Name of its run folder."""
        return f"round-{self.number:02}-{len(self.layers)}l"


def plan_layers(args: GrowArgs, depth: int, start: tuple[int, ...] | None = None) -> list[Round]:
    """Plans all rounds that there can be, Algorithm 1 of the paper.

    Args:
        depth: the reference's number of layers.
        start: the reference's layer behind each layer of a checkpoint to start from; its first ``args.n`` when None.

    Raises:
        UserError: arguments that the reference's depth rules out.
    """
    if start is None:
        n = max(1, depth // 2) if args.n is None else args.n
        if not 1 <= n <= depth:
            raise UserError(f"--n is {n}; the reference has {depth} layers, give 1 to {depth}")
        start = tuple(range(n))
    limit = depth if args.max_layers is None else args.max_layers
    if not len(start) <= limit <= depth:
        raise UserError(
            f"--max_layers is {limit}; the start has {len(start)} layers and the reference {depth}, beyond which there "
            f"is nothing to grow: give {len(start)} to {depth}"
        )
    rounds, layers = [Round(1, start, 0)], start
    source = _LayerSource(args, depth)
    while len(layers) + args.grow_by <= limit and (new := source.take(layers)):
        layers += new
        rounds.append(Round(len(rounds) + 1, layers, args.grow_by))
    if len(rounds) == 1 and args.max_layers != len(start):
        raise UserError(
            f"--grow_by {args.grow_by} on {len(start)} layers grows past {source.end(limit)}; give a smaller "
            f"--grow_by, a smaller start, or --max_layers {len(start)} to train without growing"
        )
    return rounds


class _LayerSource:
    """Where new layers come from."""

    def __init__(self, args: GrowArgs, depth: int) -> None:
        self.args, self.depth = args, depth
        self.listed: tuple[int, ...] | None = None
        if args.new_layers not in ("next", "own"):
            try:
                self.listed = tuple(parse_layers(args.new_layers, depth))
            except UserError as error:
                # The syntax is that of `inheritune slice`, whose flag has another name.
                message = str(error).replace("--layers", "--new_layers", 1)
                raise UserError(f"{message}; or next, or own") from error
        self.left = self.listed or ()

    def take(self, layers: tuple[int, ...]) -> tuple[int, ...]:
        """The layers that a model with ``layers`` grows by; none where they are used up."""
        count = self.args.grow_by
        if self.args.new_layers == "next":
            return tuple(range(len(layers), len(layers) + count))
        if self.args.new_layers == "own":
            return layers[-count:] if count <= len(layers) else ()
        new, self.left = self.left[:count], self.left[count:]
        return new if len(new) == count else ()

    def end(self, limit: int) -> str:
        """What the first growth would pass."""
        if self.listed is not None and len(self.listed) < self.args.grow_by:
            return f"--new_layers {self.args.new_layers}, which are {len(self.listed)}"
        if self.args.new_layers == "own" and limit == self.depth:
            return f"its own layers or the reference's {self.depth}"
        return f"--max_layers {limit}" if limit < self.depth else f"the reference's {self.depth} layers"


@dataclass(frozen=True)
class RoundPlan:
    """One round: its layers, and the run that trains it."""

    round: Round
    run: RunPlan

    @property
    def flops(self) -> float:
        """FLOPs of its training."""
        return self.run.total_steps * self.run.tokens_per_step * self.run.flops_per_token


@dataclass(frozen=True)
class GrowthPlan:
    """What is known before anything is spent; as text, the plan that people read.

    Attributes:
        rounds: those that there can be.
        limit: what ends growing after them: "max_layers" or "max_flops".
        settings: everything that changes the outcome, the reference's identity aside.
        val_data: held-out samples that decide.
        fabric: the devices.
    """

    args: GrowArgs
    resolved: ResolvedReference
    rounds: list[RoundPlan]
    limit: str
    attn_scale: str
    settings: dict[str, Any]
    val_data: PackedDataset
    fabric: Fabric

    def training(self, one: Round, start: Path, max_time: float | None) -> PretrainArgs:
        """Arguments of ``pretrain`` for a round: a fresh schedule, and a data order of its own.

        Args:
            start: the checkpoint that the round starts from.
            max_time: seconds that are left.
        """
        args = self.args
        shared = {each.name: getattr(args, each.name) for each in fields(TrainingArgs)}
        shared |= {"seed": args.seed + one.number - 1, "train": replace(args.train, max_time=max_time)}
        return PretrainArgs(start, args.data, args.out_dir / one.name, **shared)

    def __str__(self) -> str:
        reference, args = self.resolved.reference, self.args
        kinds = {"next": "the reference's next", "own": "copies of the model's own last"}
        lines = [
            f"grow from {reference.name}: {reference.config.n_layer} layers, width {reference.config.n_embd}; new "
            f"layers: {kinds.get(args.new_layers, f'{args.new_layers} of the reference')}",
            f"until the loss on {self.rounds[0].run.val_blocks:,} validation samples is at most {args.margin:g} nats "
            f"above the reference's with 95% confidence (difference + {Z} paired standard errors)",
        ]
        for plan in self.rounds:
            one, run = plan.round, plan.run
            new = f", new: {_ranges(one.layers[-one.added :])}" if one.added else ""
            lines.append(
                f"round {one.number}: {len(one.layers)} layers{new}, {run.parameters:,} parameters, {run.tokens:,} "
                f"tokens, {plan.flops:.2e} FLOPs{self._hours(plan.flops)}"
            )
        spent, devices = sum(plan.flops for plan in self.rounds), self.fabric.world_size
        name = torch.cuda.get_device_name(self.fabric.device) if self.fabric.device.type == "cuda" else "CPU"
        machine = f"{devices} x {name}" if devices > 1 else name
        return "\n     ".join([*lines, f"at most {spent:.2e} FLOPs{self._hours(spent)} on {machine}"])

    def _hours(self, flops: float) -> str:
        """Hours at the assumed share of the peak, where that is known."""
        peak = self.rounds[0].run.peak_flops
        if peak is None:
            return ""
        hours = flops / (ASSUMED_MFU * peak * self.fabric.world_size) / 3600
        return f", {hours:,.1f} h at {ASSUMED_MFU:.0%} of the peak"


def plan_growth(args: GrowArgs, resolved: ResolvedReference) -> GrowthPlan:
    """Checks everything that can be checked without computing, and plans the run of every round.

    Raises:
        UserError: the arguments do not fit each other, the reference, the data or the machine.
    """
    reference, initial = resolved.reference, args.initial_checkpoint_dir
    attn_scale, start = attn_scale_of(initial), layers_of(initial) if initial else None
    if initial and start:
        check_start(initial, start, reference, reference.tied, attn_scale)
    rounds = plan_layers(args, reference.config.n_layer, start)
    check_fits_model(args.data, reference.folder, reference.config.padded_vocab_size)
    length = sample_length(args.train, reference.config)
    data = {split: PackedDataset(args.data, split, length, args.documents) for split in ("train", "val")}
    mixture = make_mixture(data["train"].domains, args.mixture.weights)
    if not 0 <= args.seed <= 2**64 - len(rounds):
        raise UserError(f"--seed is {args.seed}; give a number from 0 to {2**64 - len(rounds)}")
    args = replace(args, precision=args.precision or default_precision())
    assert args.precision is not None
    fabric = build_fabric(args.devices, args.num_nodes, args.strategy, args.precision)
    peak = peak_flops(torch.cuda.get_device_name(fabric.device)) if fabric.device.type == "cuda" else None
    every = []
    for one in rounds:
        config = student_config(reference, slice_options(one.layers, attn_scale))[0]
        parameters = count_parameters(tensor_shapes(config, reference.tied))
        samples, devices = len(data["val"]), fabric.world_size
        run = plan_run(config, args.train, args.eval, mixture, samples, parameters, devices=devices, peak_flops=peak)
        every.append(RoundPlan(one, run))
    if (samples := every[0].run.val_blocks) < 2:
        raise UserError(
            f"{args.data} and --eval.max_iters give {samples} validation sample; the comparison with the reference "
            "needs at least 2 for a standard error, and many for a small one"
        )
    plans = _within_budget(every, args.max_flops)
    settings = {
        "grow_by": args.grow_by,
        "new_layers": args.new_layers,
        "old_layers": args.old_layers,
        "start_layers": list(rounds[0].layers),
        "start_sha256": sha256_file(initial / WEIGHTS) if initial else None,
        "device": fabric.device.type,
        **training_settings(args.train, args.eval, args.optimizer, args.speed),
        "precision": args.precision,
        "seed": args.seed,
        **data_settings(args.data, args.documents, mixture),
        "margin": args.margin,
        "optimizer_state": args.optimizer_state,
    }
    limit = "max_layers" if len(plans) == len(every) else "max_flops"
    return GrowthPlan(args, resolved, plans, limit, attn_scale, settings, data["val"], fabric)


def _within_budget(plans: list[RoundPlan], max_flops: float | None) -> list[RoundPlan]:
    """The rounds whose training takes at most ``max_flops`` together."""
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


def _ranges(layers: tuple[int, ...]) -> str:
    """``(3, 4, 5, 9)`` -> ``3-5,9``."""
    spans: list[list[int]] = []
    for layer in layers:
        if spans and layer == spans[-1][1] + 1:
            spans[-1][1] = layer
        else:
            spans.append([layer, layer])
    return ",".join(f"{first}-{last}" if last > first else str(first) for first, last in spans)
