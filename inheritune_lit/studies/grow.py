"""What growing starts from: arguments checked against the reference, the data and the devices; nothing is computed."""

import shutil
import sys
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.fabric import Fabric

from inheritune_lit.checkpoint.folder import WEIGHTS
from inheritune_lit.data.compatibility import check_fits_model
from inheritune_lit.data.mixture import make_mixture
from inheritune_lit.data.packed import PackedDataset
from inheritune_lit.errors import UserError
from inheritune_lit.evaluation.against_reference import Judge, check_margin, compare, reference_identity
from inheritune_lit.evaluation.held_out import BlockLosses, mean_loss
from inheritune_lit.inherit.args import SliceArgs
from inheritune_lit.inherit.grown import attn_scale_of, check_start, layers_of, write_grown
from inheritune_lit.inherit.load import build_reference
from inheritune_lit.inherit.resolve import ResolvedReference, resolve
from inheritune_lit.inherit.slice import slice_model
from inheritune_lit.io.folders import new_folder
from inheritune_lit.io.manifest import read_manifest, sha256_file, write_manifest
from inheritune_lit.io.settings_guard import check_folder
from inheritune_lit.model.load import load_model
from inheritune_lit.studies.grow_history import History
from inheritune_lit.studies.grow_layers import GrowOptions, Round, plan_layers
from inheritune_lit.studies.grow_plan import RoundPlan, parameters_of, plan_rounds, plan_text, within_budget
from inheritune_lit.studies.grow_training import Training
from inheritune_lit.train.args import PretrainArgs
from inheritune_lit.train.devices import build_fabric
from inheritune_lit.train.gpus import peak_flops
from inheritune_lit.train.optim import OPTIMIZER
from inheritune_lit.train.plan import block_size_of
from inheritune_lit.train.pretrain import pretrain
from inheritune_lit.train.run_folder import FINAL, data_settings


@dataclass(frozen=True)
class Setup:
    """What is known before anything is spent.

    Attributes:
        plans: the rounds there can be.
        limit: what ends growing after them: "max_layers" or "max_flops".
        settings: everything that changes the outcome, the reference's identity aside.
    """

    located: ResolvedReference
    out_dir: Path
    options: GrowOptions
    plans: list[RoundPlan]
    limit: str
    attn_scale: str
    settings: dict[str, Any]
    val_data: PackedDataset
    fabric: Fabric
    peak: float | None

    def plan_text(self, margin: float) -> str:
        name = torch.cuda.get_device_name(self.fabric.device) if self.fabric.device.type == "cuda" else "CPU"
        machine = f"{self.fabric.world_size} x {name}" if self.fabric.world_size > 1 else name
        kind, devices = self.options.new_layers, self.fabric.world_size
        return plan_text(self.located.reference, self.plans, kind, margin, machine, devices)

    def say(self, text: str) -> None:
        if self.fabric.global_rank == 0:
            print(text, file=sys.stderr, flush=True)


def prepare(
    located: ResolvedReference, out_dir: Path, options: GrowOptions, training: Training, initial: Path | None
) -> Setup:
    """Check everything that can be checked without computing."""
    reference = located.reference
    attn_scale = attn_scale_of(initial)
    start = layers_of(initial) if initial else None
    if initial and start:
        check_start(initial, start, reference, reference.tied, attn_scale)
    rounds = plan_layers(options, reference.config.n_layer, start)
    check_fits_model(training.data, reference.folder, reference.config.padded_vocab_size)
    block_size = block_size_of(training.train, reference.config)
    data = {split: PackedDataset(training.data, split, block_size, training.documents) for split in ("train", "val")}
    mixture = make_mixture(data["train"].domains, training.mixture.weights)
    if not 0 <= training.seed <= 2**64 - len(rounds):
        raise UserError(f"--seed is {training.seed}; give a number from 0 to {2**64 - len(rounds)}")
    fabric = build_fabric(training.devices, training.num_nodes, training.strategy, training.precision)
    peak = peak_flops(torch.cuda.get_device_name(fabric.device)) if fabric.device.type == "cuda" else None
    cost = (training, mixture, len(data["val"]), fabric.world_size, peak)
    every = plan_rounds(reference, rounds, attn_scale, *cost)
    plans = within_budget(every, options.max_flops)
    settings = {
        "grow_by": options.grow_by,
        "new_layers": options.new_layers,
        "old_layers": options.old_layers,
        "start_layers": list(rounds[0].layers),
        "start_sha256": sha256_file(initial / WEIGHTS) if initial else None,
        "device": fabric.device.type,
        **training.settings(),
        **data_settings(training.data, training.documents, mixture),
    }
    limit = "max_layers" if len(plans) == len(every) else "max_flops"
    return Setup(located, out_dir, options, plans, limit, attn_scale, settings, data["val"], fabric, peak)


OptimizerState = Literal["reset", "keep"]
_KIND = "growth"
_FREE = ("data",)  # its folder may have moved: the hash is what counts
_REFERENCE_LOSSES, _LOSSES = "reference.json", "val_losses.json"


def grow(
    ref: str,
    out_dir: Path,
    options: GrowOptions,
    training: Training,
    *,
    initial_checkpoint_dir: Path | None = None,
    margin: float = 0.01,
    optimizer_state: OptimizerState = "reset",
    dry_run: bool = False,
) -> History | None:
    """Train, compare with the reference, add layers, train again, until the loss is not worse than the reference's.

    The same call continues what was stopped or killed, with the outcome of an undisturbed one. ``out_dir`` holds a
    checkpoint and a run folder a round, ``reference.json`` with the reference's losses, and ``grow.json``, ``.md`` and
    ``.png``, the history.

    Args:
        ref: the reference, as for ``SliceArgs``.
        out_dir: folder for everything.
        options: how to grow.
        training: how to train a round.
        initial_checkpoint_dir: a checkpoint of the reference's shape to start from; the reference's first layers when
            None.
        margin: nats a token by which the loss may be above the reference's.
        optimizer_state: "reset" begins every round with a fresh optimizer; "keep" leaves old layers theirs.
        dry_run: print the plan and stop.

    Returns:
        The history; its ``outcome`` is None where SIGTERM or ``train.max_time`` stopped a round. None for a dry run.

    Raises:
        UserError: bad input, before any training; or what ``pretrain`` raises.
        KeyboardInterrupt: after saving, when stopped with Ctrl-C.
    """
    check_margin(margin)
    if optimizer_state == "keep" and training.strategy in ("fsdp", "hybrid"):
        raise UserError(
            f"--optimizer_state keep with --strategy {training.strategy} is not possible; use ddp, or reset"
        )
    if optimizer_state == "keep" and options.old_layers == "inherited":
        raise UserError("--optimizer_state keep is for layers that go on; with --old_layers inherited use reset")
    with resolve(ref) as located:
        # Nothing is downloaded before everything else is known to be right.
        located = located if located.repository else located.open()
        setup = prepare(located, out_dir, options, training, initial_checkpoint_dir)
        rule = {"margin": margin, "optimizer_state": optimizer_state}
        setup = replace(setup, settings={**setup.settings, **rule})
        check_folder(out_dir, _KIND, setup.settings, ("reference", *_FREE))
        setup.say(setup.plan_text(margin))
        if dry_run:
            return None
        setup = replace(setup, located=located if located.reference.weights else located.open())
        return _Growing(setup, ref, training, initial_checkpoint_dir, margin, optimizer_state).run()


class _Growing:
    """The rounds, each in three parts that are done once: a checkpoint to start from, its training, its losses."""

    def __init__(
        self,
        setup: Setup,
        ref: str,
        training: Training,
        initial: Path | None,
        margin: float,
        optimizer_state: OptimizerState,
    ) -> None:
        self.setup, self.ref, self.training, self.initial = setup, ref, training, initial
        self.margin, self.optimizer_state = margin, optimizer_state
        self.reference, self.fabric, self.out_dir = setup.located.reference, setup.fabric, setup.out_dir
        self.first = setup.fabric.global_rank == 0
        self.began = time.monotonic()
        run, batch = setup.plans[0].run, training.train.micro_batch_size
        self.judge = Judge(setup.fabric, setup.val_data, training.documents, run.val_blocks, batch, training.precision)

    def run(self) -> History:
        identity = reference_identity(self.setup.located)
        self._open_folder(identity)
        losses = self.judge.measure(
            self.out_dir / _REFERENCE_LOSSES,
            identity,
            f"measure {self.reference.name}",
            partial(build_reference, self.reference),
        )
        history = History.of(self.out_dir, self._about_reference(losses))
        for plan in self.setup.plans:
            if len(history.rounds) < plan.round.number and not self._round(plan, losses, history):
                return history
            self._drop_optimizers(plan.round.number)
            if history.rounds[plan.round.number - 1]["verdict"] == "met":
                return self._end(history, "met")
        return self._end(history, self.setup.limit)

    def _open_folder(self, identity: dict[str, Any]) -> None:
        """Begin or go on in ``out_dir``, clean of what a kill has left."""
        settings = {"reference": identity, **self.setup.settings}
        found = check_folder(self.out_dir, _KIND, settings, _FREE)
        self.fabric.barrier()
        if self.first and found is None:
            with new_folder(self.out_dir) as staging:
                write_manifest(staging, _KIND, {"settings": settings})
        elif self.first:
            for left in (*self.out_dir.glob(".*.partial-*"), *self.out_dir.glob("round-*/.*.partial-*")):
                shutil.rmtree(left)
        self.fabric.barrier()

    def _round(self, plan: RoundPlan, reference: BlockLosses, history: History) -> bool:
        """Do a round and take it up; False where it was stopped before its end."""
        one = plan.round
        before = self.setup.plans[one.number - 2].round if one.number > 1 else None
        start = self._start(one, before)
        left = self._seconds_left()
        if left is not None and left <= 0:
            self.setup.say(f"--train.max_time is over before round {one.number}; the same command continues")
            return False
        run_dir, keeps = self.out_dir / one.name, self.optimizer_state == "keep"
        last_optimizer = self.out_dir / before.name / OPTIMIZER if before and keeps else None
        arguments = self.training.of_round(one.number, left)
        args = PretrainArgs(start, out_dir=run_dir, **arguments)
        result = pretrain(args, initial_optimizer=last_optimizer, keep_optimizer=keeps)
        if result.final is None:
            return False
        scored = self.judge.measure(
            run_dir / _LOSSES,
            {"sha256": sha256_file(result.final / WEIGHTS)},
            f"measure {one.name}",
            partial(load_model, result.final),
        )
        comparison = compare(scored, reference, self.margin)
        history.add(plan, comparison, mean_loss(scored.losses, scored.targets)[1])
        if self.first:
            history.save()
            print(f"round {one.number}, {len(one.layers)} layers: {comparison.words()}", flush=True)
        return True

    def _start(self, one: Round, before: Round | None) -> Path:
        """The checkpoint that a round starts from, made where it is not there."""
        if before is None and self.initial:
            return self.initial
        start = self.out_dir / f"start-{one.number:02}-{len(one.layers)}l"
        if self.first and not start.exists():
            if before is None or self.setup.options.old_layers == "inherited":
                slice_model(SliceArgs(self.ref, layers=",".join(map(str, one.layers)), out_dir=start))
            else:
                own = self.setup.options.new_layers == "own"
                trained = self.out_dir / before.name / FINAL
                write_grown(start, self.reference, trained, one.layers, one.added, own, self.setup.attn_scale)
        self.fabric.barrier()
        return start

    def _drop_optimizers(self, number: int) -> None:
        """Remove optimizer states from before a round that is done: twice the size of a model each."""
        if self.first:
            for plan in self.setup.plans[: number - 1]:
                (self.out_dir / plan.round.name / OPTIMIZER).unlink(missing_ok=True)

    def _seconds_left(self) -> float | None:
        """Of ``train.max_time``, which is for the whole call; the same on every rank, so that all of them stop."""
        limit = self.training.train.max_time
        return None if limit is None else self.fabric.broadcast(limit - (time.monotonic() - self.began))

    def _about_reference(self, scored: BlockLosses) -> dict[str, Any]:
        loss, stderr, _, _ = mean_loss(scored.losses, scored.targets)
        config = self.reference.config
        self.setup.say(f"reference: held-out loss {loss:.4f} ± {stderr:.4f}")
        return {
            "name": self.reference.name,
            "n_layer": config.n_layer,
            "parameters": parameters_of(config, self.reference.tied),
            "loss": loss,
            "stderr": stderr,
            "tokens": (read_manifest(self.reference.folder) or {}).get("tokens"),
        }

    def _end(self, history: History, outcome: str) -> History:
        history.outcome = outcome
        if self.first:
            history.save()
            final = self.out_dir / history.rounds[-1]["folder"] / FINAL
            print(f"\n{history.table()}\n{history.conclusion()}wrote {final} and {self.out_dir}/grow.md, .json, .png")
        return history
