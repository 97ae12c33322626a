"""``inheritune grow``: Algorithm 1 of the paper.

Require: reference model M_ref with k layers, data sets D_train and D_val, steps T
1: initialize M_tgt with the first n = k/2 layers of M_ref
2: train M_tgt on D_train for T steps
3: while M_tgt performance < M_ref performance on D_val do
4:     grow M_tgt by inheriting additional layers
5:     train M_tgt for T steps
6: end while
7: return M_tgt
"""

import logging
import shutil
import time
from functools import partial
from pathlib import Path

from inheritune_lit import (
    FINAL,
    OPTIMIZER,
    WEIGHTS,
    BlockLosses,
    HeldOutEvaluator,
    ResolvedReference,
    SliceArgs,
    build_reference,
    compare_losses,
    load_model,
    mean_loss,
    reference_identity,
    resolve_reference,
    slice_model,
    write_grown,
)
from inheritune_lit.io.folders import new_folder
from inheritune_lit.io.manifest import sha256_file, write_manifest
from inheritune_lit.io.settings_guard import check_folder
from inheritune_lit.studies.args import GrowArgs
from inheritune_lit.studies.grow_history import GrownReference, GrownRound, GrowResult, Growth, read_growth
from inheritune_lit.studies.grow_plan import GrowthPlan, Round, RoundPlan, plan_growth
from inheritune_lit.studies.runner import Experiment, run_experiment

_KIND, _FREE = "growth", ("data",)  # the folder of the data may have moved: its hash is compared
logger = logging.getLogger(__name__)


def grow(args: GrowArgs) -> GrowResult:
    """Trains, compares with the reference, adds layers, trains again, until the loss is not worse than the reference's.

    The same call continues what was stopped or killed, with the outcome of an undisturbed one. ``out_dir`` holds a
    checkpoint and a run folder per round, ``reference.json`` with the reference's losses, and ``grow.json``, ``.md``
    and ``.png``, the history.

    Raises:
        UserError: bad input, before any training; or what ``pretrain`` raises.
        KeyboardInterrupt: after saving, when stopped with Ctrl-C.
    """
    with resolve_reference(args.ref) as resolved:
        # Nothing is downloaded before everything else is known to be right.
        resolved = resolved if resolved.repository else resolved.open()
        plan = plan_growth(args, resolved)
        check_folder(args.out_dir, _KIND, plan.settings, ("reference", *_FREE))
        _log(plan, str(plan))
        if args.dry_run:
            return GrowResult(args.out_dir)
        growing = _Growing(plan, resolved if resolved.reference.weights else resolved.open())
        growth = growing.load_history()
        target: Path | None = None
        for step in plan.rounds:
            if len(growth.rounds) < step.round.number:
                start = growing.inherit(step.round, target)  # lines 1 and 4
                if not growing.train(step, start):  # lines 2 and 5
                    return GrowResult(args.out_dir, growth, growing.stopped)
                growing.compare(step, growth)  # line 3
            target = args.out_dir / step.round.name / FINAL
            growing.drop_optimizers(step.round.number)
            if growth.rounds[step.round.number - 1].verdict == "met":
                return growing.finish(growth, "met")
        return growing.finish(growth, plan.limit)


class _Growing:
    """The steps of Algorithm 1. Each is done once: what is there already is kept."""

    def __init__(self, plan: GrowthPlan, resolved: ResolvedReference) -> None:
        self.plan, self.args, self.reference = plan, plan.args, resolved.reference
        self.fabric, self.out_dir = plan.fabric, plan.args.out_dir
        self.first, self.started, self.stopped = plan.fabric.global_rank == 0, time.monotonic(), ""
        samples, batch = plan.rounds[0].run.val_blocks, self.args.train.micro_batch_size
        assert self.args.precision is not None
        self.evaluator = HeldOutEvaluator(
            self.fabric, plan.val_data, self.args.documents, samples, batch, self.args.precision
        )
        identity = reference_identity(resolved)
        self._open_folder({"reference": identity, **plan.settings})
        load = partial(build_reference, self.reference)
        label = f"measure {self.reference.name}"
        self.reference_losses = self.evaluator.measure(self.out_dir / "reference.json", identity, label, load)

    def _open_folder(self, settings: dict[str, object]) -> None:
        """Makes ``out_dir``, or clears it of what a kill has left."""
        found = check_folder(self.out_dir, _KIND, settings, _FREE)
        self.fabric.barrier()
        if self.first and found is None:
            with new_folder(self.out_dir) as staging:
                write_manifest(staging, _KIND, {"settings": settings})
        elif self.first:
            for left in (*self.out_dir.glob(".*.partial-*"), *self.out_dir.glob("round-*/.*.partial-*")):
                shutil.rmtree(left)
        self.fabric.barrier()

    def load_history(self) -> Growth:
        """The rounds that are done, with what the reference scores."""
        loss, stderr, _, _ = mean_loss(self.reference_losses.losses, self.reference_losses.targets)
        _log(self.plan, f"reference: held-out loss {loss:.4f} ± {stderr:.4f}")
        return read_growth(self.out_dir, GrownReference.of(self.reference, loss, stderr))

    def inherit(self, one: Round, trained: Path | None) -> Path:
        """Makes the checkpoint that a round starts from: layers of the reference, behind those that were trained."""
        if trained is None and self.args.initial_checkpoint_dir:
            return self.args.initial_checkpoint_dir
        start = self.out_dir / f"start-{one.number:02}-{len(one.layers)}l"
        if self.first and not start.exists():
            if trained is None or self.args.old_layers == "inherited":
                slice_model(SliceArgs(self.args.ref, layers=",".join(map(str, one.layers)), out_dir=start))
            else:
                own, scale = self.args.new_layers == "own", self.plan.attn_scale
                write_grown(start, self.reference, trained, one.layers, one.added, own, scale)
        self.fabric.barrier()
        return start

    def train(self, step: RoundPlan, start: Path) -> bool:
        """Trains for T steps; False where that was stopped before its end."""
        one, seconds = step.round, self._seconds_left()
        if seconds is not None and seconds <= 0:
            _log(self.plan, f"--train.max_time is over before round {one.number}; the same command continues")
            return False
        keep = self.args.optimizer_state == "keep"
        before = self.plan.rounds[one.number - 2].round if keep and one.number > 1 else None
        last = self.out_dir / before.name / OPTIMIZER if before else None
        experiment = Experiment(one.name, one.name, None, self.plan.training(one, start, seconds))
        result = run_experiment(experiment, initial_optimizer=last, keep_optimizer=keep)
        self.stopped = "" if result.final else str(result)
        return result.final is not None

    def compare(self, step: RoundPlan, growth: Growth) -> None:
        """Measures a trained model on D_val, compares it with the reference, and records the round."""
        losses = self._measure(step.round)
        comparison = compare_losses(losses, self.reference_losses, self.args.margin)
        growth.rounds.append(GrownRound.of(step, comparison, mean_loss(losses.losses, losses.targets)[1], growth))
        if self.first:
            growth.save(self.out_dir)
        _log(self.plan, f"round {step.round.number}, {len(step.round.layers)} layers: {comparison.words()}")

    def _measure(self, one: Round) -> BlockLosses:
        final = self.out_dir / one.name / FINAL
        identity, load = {"sha256": sha256_file(final / WEIGHTS)}, partial(load_model, final)
        return self.evaluator.measure(
            self.out_dir / one.name / "val_losses.json", identity, f"measure {one.name}", load
        )

    def drop_optimizers(self, number: int) -> None:
        """Removes optimizer states from before a round that is done: each is twice the size of a model."""
        if self.first:
            for step in self.plan.rounds[: number - 1]:
                (self.out_dir / step.round.name / OPTIMIZER).unlink(missing_ok=True)

    def _seconds_left(self) -> float | None:
        """What is left of ``train.max_time``, which is for the whole call; the same on every rank, so that all stop."""
        limit = self.args.train.max_time
        return None if limit is None else self.fabric.broadcast(limit - (time.monotonic() - self.started))

    def finish(self, growth: Growth, outcome: str) -> GrowResult:
        """Records why growing ended, and returns the optimized model (line 7)."""
        growth.outcome, growth.final = outcome, f"{growth.rounds[-1].folder}/{FINAL}"
        if self.first:
            growth.save(self.out_dir)
        return GrowResult(self.out_dir, growth)


def _log(plan: GrowthPlan, text: str) -> None:
    if plan.fabric.global_rank == 0:
        logger.info(text)
