"""The training loop: optimizer steps, logging, validation, saving, stopping."""

import logging
import math
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from lightning.fabric import Fabric

from inheritune_lit.data.packed import PackedDataset
from inheritune_lit.data.sampler import MixtureSampler, micro_batch_samples
from inheritune_lit.errors import UserError
from inheritune_lit.evaluation.held_out import Stopped, ValidationResult, validate
from inheritune_lit.evaluation.score_cache import Ranks
from inheritune_lit.io.progress import Progress
from inheritune_lit.model.devices import peak_memory, to_device
from inheritune_lit.train.args import TrainingArgs
from inheritune_lit.train.distillation import TeacherLogits
from inheritune_lit.train.metrics import MetricsLog, Row
from inheritune_lit.train.optim import MAX_SKIPPED, LossGuard, MasterWeights, clip_gradients, learning_rate
from inheritune_lit.train.plan import RunPlan
from inheritune_lit.train.run_folder import RunResult
from inheritune_lit.train.saving import BEST, Counters, Saver, writing
from inheritune_lit.train.setup import TrainState

logger = logging.getLogger(__name__)

_PATIENCE = 5.0  # seconds that a step may still take when the run is to stop


class _StepLeft(Exception):
    """A step was left because the run is to stop."""


class Trainer:
    """Trains one model for a planned number of steps; on several devices each rank has one of these.

    ``step`` counts optimizer steps done, ``tokens`` the targets trained on; ``doing`` says what comes before a first
    request to stop is met. The ``log`` is None on all ranks but the first.
    """

    def __init__(
        self,
        fabric: Fabric,
        state: TrainState,
        plan: RunPlan,
        args: TrainingArgs,
        data: PackedDataset,
        sampler: MixtureSampler,
        val_data: PackedDataset,
        saver: Saver,
        log: MetricsLog | None,
        teacher_logits: TeacherLogits | None = None,
    ) -> None:
        self.fabric, self.state, self.saver, self.log = fabric, state, saver, log
        self.plan, self.train, self.eval, self.lr = plan, args.train, args.eval, args.optimizer.lr
        self.data, self.sampler, self.val_data, self.teacher_logits = data, sampler, val_data, teacher_logits
        self._ranks = Ranks.of(fabric)
        self.guard = LossGuard(args.train.max_loss_jump)
        self.step, self.tokens, self._seconds, self._best = 0, 0, 0.0, math.inf
        self._due: Row | None = None  # metrics of a step whose validation is to come
        self._stop: Sequence[signal.Signals] = ()
        self.doing = "leaving before the first step"

    def fit(self, stop: Sequence[signal.Signals]) -> ValidationResult | None:
        """Train from the saved state, where there is one, and return the last validation.

        None when the run was stopped before its end: once ``stop`` holds a signal, the step that runs is finished and
        saved; a validation is left, and done when the run is continued. Before the last validation the state is saved,
        so that nothing that comes then costs the weights. A bad step, or a state that cannot be saved or read, is a
        ``UserError``; Ctrl-C is a ``KeyboardInterrupt`` after saving.
        """
        self._stop = stop
        self._restore()
        began, first = time.monotonic(), self.step
        self._logged_tokens, self._logged_seconds = self.tokens, self._seconds
        validation, total = None, self.plan.total_steps
        with Progress("train", total, "step", self.step, hidden=not self._ranks.is_first) as progress:
            while self.step < total or self._due:
                # Not before a step is done, so that every call comes further.
                late = self.step > first and time.monotonic() - began >= (self.train.max_time or math.inf)
                # If one rank wants to stop, all do, or it would be waited for forever.
                if self._ranks.add_up(torch.tensor(float(bool(stop) or late))).item():
                    self._save()
                    self._close()
                    if signal.SIGINT in stop:
                        self._log(str(RunResult(None, steps=self.step, stopped=True)))
                        raise KeyboardInterrupt
                    return None
                try:
                    validation = self._advance(progress)
                except _StepLeft:
                    self.state.optimizer.zero_grad()
        self._close()
        return validation

    def _restore(self) -> None:
        if counters := self.saver.load():
            self.step, self.tokens, self._due = counters.step, counters.tokens, counters.due
            self._seconds, self._best = counters.seconds, counters.best
            self.guard = LossGuard(self.train.max_loss_jump, **counters.guard)
            if self.step * self.train.global_batch_size == self.sampler.first_sample:
                # Other data has another level of loss.
                self.guard = LossGuard(self.train.max_loss_jump, skipped=self.guard.skipped)
            self._log(f"continues after step {self.step:,} of {self.plan.total_steps:,}")
        self._saved_step = self.step
        if self.log:
            self.log.open(self.step - 1 if self._due else self.step)
        if self.step == 0 and self.eval.initial_validation and (first := self._validate()):
            self._write_row({"step": 0, "tokens": 0, "seconds": 0.0, **_columns(first)})
            self._log(f"loss before training: {first.loss:.4f} ± {first.stderr:.4f}")

    def _advance(self, progress: Progress) -> ValidationResult | None:
        """Do one optimizer step, unless its validation is due, and what follows; the validation, if one was done."""
        done, row = (0, self._due) if self._due else (1, self._take_step())
        note, validation, last = None, None, self.step == self.plan.total_steps
        if last or self.step % self.eval.interval == 0:
            self._due = row
            if last:
                self._save(keep=False)
            if (validation := self._validate()) is None:
                return None
            if self.train.keep_best and validation.loss < self._best:
                self._best = validation.loss
                self.saver.save_weights(BEST, {"steps": self.step, "val_loss": validation.loss})
            row, self._due = {**row, **_columns(validation)}, None
        if validation or self.step % self.train.log_interval == 0:
            note = f"loss {row['loss']:.4f}, {row['tokens_per_s']:,.0f} tokens/s"
            if validation:
                note += f", held-out {validation.loss:.4f} ± {validation.stderr:.4f}"
            self._write_row(row)
        if not last and self.step % (self.train.save_interval or self.step + 1) == 0:
            self._save()
        progress.update(done, note)
        return validation

    def _take_step(self) -> Row:
        """Do one optimizer step; its metrics."""
        self.doing = f"finishing step {self.step + 1:,}, then saving"
        start = time.perf_counter()
        loss, grad_norm, lr = self.train_step()
        self.step += 1
        self._seconds += time.perf_counter() - start
        row: Row = {"step": self.step, "tokens": self.tokens, "loss": loss, "lr": lr, "grad_norm": grad_norm}
        if self.step % self.train.log_interval and self.step % self.eval.interval and self.step < self.plan.total_steps:
            return row
        # Of training since the last logged step, validation and saving left out.
        speed = (self.tokens - self._logged_tokens) / (self._seconds - self._logged_seconds)
        self._logged_tokens, self._logged_seconds = self.tokens, self._seconds
        row |= {"tokens_per_s": speed, "seconds": self._seconds, "skipped": self.guard.skipped}
        if peak := self.plan.peak_flops:
            row["mfu"] = speed * self.plan.flops_per_token / (peak * self.fabric.world_size)
        return {**row, "memory_gb": peak_memory(self.fabric.device) / 1e9}

    def train_step(self) -> tuple[float, float, float]:
        """One optimizer step: loss (mean over tokens), gradient norm before clipping, learning rate."""
        lr = learning_rate(self.step, self.plan.total_steps, self.train, self.lr)
        for group in self.state.optimizer.param_groups:
            group["lr"] = lr
        size, micro_size, world = self.train.global_batch_size, self.train.micro_batch_size, self.fabric.world_size
        targets = int(self.data.targets(self.sampler.blocks(range(self.step * size, (self.step + 1) * size))).sum())
        losses, start = [], time.perf_counter()
        for micro in range(self.plan.accumulation):
            summed = self._loss(micro_batch_samples(self.step, micro, size, micro_size, self._ranks.rank, world))
            losses.append(summed.detach())
            waits = micro < self.plan.accumulation - 1 or isinstance(self.state.optimizer, MasterWeights)
            with self.fabric.no_backward_sync(self.state.loss, enabled=waits and world > 1):
                # Over the step's targets, so that each counts the same however they fall into micro-batches and ranks;
                # ranks average their gradients.
                self.fabric.backward(summed * (world / targets))
            left = (self.plan.accumulation - micro - 1) * (time.perf_counter() - start) / (micro + 1)
            if self._stop and world == 1 and left > _PATIENCE:
                self._log(f"the step would take {left:.0f} s more: it is left, and done when the run is continued")
                raise _StepLeft
        if isinstance(self.state.optimizer, MasterWeights) and world > 1:
            self.state.optimizer.reduce(world)
        norm = clip_gradients(self.state.optimizer, self.train.max_norm)
        micro_losses_M = self._ranks.add_up(torch.stack(losses))
        loss, grad_norm = micro_losses_M.double().sum().item() / targets, norm.item()
        if fault := self.guard.fault(loss, grad_norm):
            self._bad_step(fault, micro_losses_M)
        else:
            self.state.optimizer.step()
            self.tokens += targets
        self.state.optimizer.zero_grad()
        return loss, grad_norm, lr

    def _bad_step(self, fault: str, micro_losses_M: torch.Tensor) -> None:
        """Leave the step out, or save the good weights before it and say which samples it had."""
        bad = [micro for micro, loss in enumerate(micro_losses_M.tolist()) if not math.isfinite(loss)]
        bad = bad or [0, self.plan.accumulation - 1]
        each, first = self.train.micro_batch_size * self.fabric.world_size, self.step * self.train.global_batch_size
        samples = f"samples {first + bad[0] * each} to {first + (bad[-1] + 1) * each - 1} of seed"
        what = f"{fault} at step {self.step + 1}, {samples} {self.sampler.seed}"
        if self.train.bad_step == "skip" and self.guard.in_row + 1 < MAX_SKIPPED:
            self.guard.skip()
            self._log(f"inheritune: warning: {what}; the step is left out", logging.WARNING)
            return
        self._save()
        self.saver.wait()
        remedy = "; the state before it is saved: continue with --train.bad_step skip to leave it out"
        if self.train.bad_step == "skip":
            remedy = (
                f", and {MAX_SKIPPED - 1} steps before it were left out too; the state is saved: continue with "
                "--train.max_loss_jump null if the loss is finite and may stay there"
            )
        raise UserError(f"{what}{remedy}, or start again with a lower --optimizer.lr")

    def _loss(self, samples: range) -> torch.Tensor:
        """Loss of some samples, summed over their targets, in fp32."""
        blocks = self.sampler.blocks(samples)
        teacher = self.teacher_logits.batch(blocks) if self.teacher_logits else ()
        tensors = (torch.from_numpy(self.data.batch(blocks)), *teacher)
        tokens_BT1, *stored_BTK = (to_device(each, self.fabric.device) for each in tensors)
        # Padding follows the last target, so causal attention never sees the token that stands in for it.
        return self.state.loss(tokens_BT1[:, :-1].clamp(min=0), tokens_BT1[:, 1:], *stored_BTK)

    def _validate(self) -> ValidationResult | None:
        """The held-out loss, None where the run is to stop first."""
        batch, blocks = self.train.micro_batch_size, self.plan.val_blocks
        options: dict[str, Any] = {"ranks": self._ranks, "stop": lambda: bool(self._stop)}
        with suppress(Stopped), self.fabric.autocast():
            return validate(self.state.gpt, self.val_data, batch, blocks, **options)
        return None

    def _save(self, keep: bool = True) -> None:
        """Save what has come since the last time."""
        if self.step > self._saved_step:
            numbers = (self.step, self.tokens, self._seconds, self._best)
            self.saver.save(Counters(*numbers, self.guard.state(), self._due), keep)
            self._saved_step = self.step

    def _write_row(self, row: Row) -> None:
        if self.log:
            with writing("the metrics", self.log.path):
                self.log.write(row)

    def _close(self) -> None:
        self.doing = "finishing the last checkpoint"
        self.saver.wait()
        if self.log:
            self.log.close()

    def _log(self, line: str, level: int = logging.INFO) -> None:
        if self._ranks.is_first:
            logger.log(level, line)


def _columns(validation: ValidationResult) -> dict[str, float]:
    by_domain = {f"val_loss/{name}": domain.loss for name, domain in validation.domains.items()}
    return {"val_loss": validation.loss, "val_stderr": validation.stderr, **by_domain}
