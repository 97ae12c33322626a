"""The training loop: optimizer steps, logging, validation, saving, stopping."""

import math
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from lightning.fabric import Fabric
from torch.nn import functional as F

from inheritune_lit.data.packed import PADDING, PackedDataset
from inheritune_lit.data.sampler import MixtureSampler, micro_batch_samples
from inheritune_lit.errors import UserError
from inheritune_lit.progress import Progress
from inheritune_lit.train.args import EvalArgs, OptimizerArgs, TrainArgs
from inheritune_lit.train.metrics import MetricsLog
from inheritune_lit.train.plan import RunPlan
from inheritune_lit.train.schedule import cosine_with_warmup
from inheritune_lit.train.state import load_state, save_state
from inheritune_lit.validation import ValidationResult, validate


class Trainer:
    """Trains one model on one device for a planned number of steps.

    Args:
        fabric: device and precision.
        model: already set up with ``fabric``.
        optimizer: already set up with ``fabric``.
        data, sampler: training samples and their order.
        val_data: what is held out.
        run_dir: where state and metrics go.
    """

    def __init__(
        self,
        fabric: Fabric,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        plan: RunPlan,
        train: TrainArgs,
        eval: EvalArgs,
        optimizer_args: OptimizerArgs,
        data: PackedDataset,
        sampler: MixtureSampler,
        val_data: PackedDataset,
        run_dir: Path,
    ) -> None:
        self.fabric, self.model, self.optimizer = fabric, model, optimizer
        self.plan, self.train, self.eval, self.optimizer_args = plan, train, eval, optimizer_args
        self.data, self.sampler, self.val_data, self.run_dir = data, sampler, val_data, run_dir
        self.tokens = 0
        self._unread: list[tuple[int, torch.Tensor, int, torch.Tensor]] = []

    def fit(self, stop: Sequence[signal.Signals], tensorboard: bool) -> tuple[int, ValidationResult | None]:
        """Train to the end, or until ``stop`` is no longer empty, from the saved state where there is one.

        Args:
            stop: signals received so far; the step that runs is finished and saved.
            tensorboard: write TensorBoard events too.

        Returns:
            Steps done, and the last validation, or None when the run was stopped before its end. ``tokens`` is then
            the number of tokens trained on.

        Raises:
            UserError: the loss is not finite, or the state cannot be saved or read.
            KeyboardInterrupt: after saving, when stopped with Ctrl-C.
        """
        step, self.tokens, self._seconds = load_state(self.run_dir, self.model, self.optimizer)
        if step:
            print(f"continues after step {step:,} of {self.plan.total_steps:,}", flush=True)
        self._saved_step = step
        self._log = MetricsLog(self.run_dir, step, tensorboard)
        if step == 0 and self.eval.initial_validation:
            first = self._validate()
            self._log.write({"step": 0, "tokens": 0, "seconds": 0.0, **_columns(first)})
            print(f"loss before training: {first.loss:.4f} ± {first.stderr:.4f}", flush=True)
        self._logged_tokens, self._logged_seconds = self.tokens, self._seconds
        validation = None
        with Progress("train", self.plan.total_steps, "step", done=step) as progress:
            while step < self.plan.total_steps and not stop:
                validation = self._advance(step, progress)
                step += 1
        self._log.close()
        if step < self.plan.total_steps:
            self._stopped(step, stop)
            return step, None
        return step, validation

    def _stopped(self, step: int, stop: Sequence[signal.Signals]) -> None:
        """Save what is not saved yet and say so."""
        self._read_losses()
        if step > self._saved_step:
            save_state(self.run_dir, self.model, self.optimizer, step, self.tokens, self._seconds)
        print(f"stopped after step {step:,}, saved; the same command continues", flush=True)
        if signal.SIGINT in stop:
            raise KeyboardInterrupt

    def _advance(self, step: int, progress: Progress) -> ValidationResult | None:
        """Do optimizer step number ``step`` and whatever is due after it; returns the validation, if there was one."""
        start = time.perf_counter()
        lr = self._step(step)
        done = step + 1
        last = done == self.plan.total_steps
        validates = done % self.eval.interval == 0 or last
        saves = not last and done % (self.train.save_interval or done + 1) == 0
        logs = done % self.train.log_interval == 0 or validates
        if not (logs or saves):
            self._seconds += time.perf_counter() - start
            progress.update(1)
            return None
        # Reading the losses waits for the device, so it happens only here. Nothing is saved or scored unseen.
        loss, grad_norm = self._read_losses()
        self._seconds += time.perf_counter() - start
        validation, note = None, None
        if logs:
            row = {"step": done, "tokens": self.tokens, "loss": loss, "lr": lr}
            row |= {"grad_norm": grad_norm, "tokens_per_s": self._tokens_per_second(), "seconds": self._seconds}
            note = f"loss {loss:.4f}, {row['tokens_per_s']:,.0f} tokens/s"
            if validates:
                validation = self._validate()
                row |= _columns(validation)
                note += f", held-out {validation.loss:.4f} ± {validation.stderr:.4f}"
            self._log.write(row)
        if saves:
            save_state(self.run_dir, self.model, self.optimizer, done, self.tokens, self._seconds)
            self._saved_step = done
        progress.update(1, note)
        return validation

    def _tokens_per_second(self) -> float:
        """Speed of training since the last logged step, validation and saving left out."""
        tokens, seconds = self.tokens - self._logged_tokens, self._seconds - self._logged_seconds
        self._logged_tokens, self._logged_seconds = self.tokens, self._seconds
        return tokens / seconds

    def _step(self, step: int) -> float:
        """One optimizer step; notes its losses and its gradient norm before clipping, and returns the learning rate."""
        lr = cosine_with_warmup(
            step,
            lr=self.optimizer_args.lr,
            min_lr=self.train.min_lr,
            warmup_steps=self.train.lr_warmup_steps,
            total_steps=self.plan.total_steps,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        whole = range(step * self.train.global_batch_size, (step + 1) * self.train.global_batch_size)
        targets = int(self.data.targets(self.sampler.blocks(whole)).sum())
        losses = []
        for micro in range(self.plan.accumulation):
            loss = self._loss(self._samples(step, micro))
            # Over the step's targets, so that each counts the same however they fall into micro-batches.
            self.fabric.backward(loss / targets)
            losses.append(loss.detach())
        max_norm = self.train.max_norm if self.train.max_norm is not None else float("inf")
        grad_norm = self.fabric.clip_gradients(self.model, self.optimizer, max_norm=max_norm, error_if_nonfinite=False)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.tokens += targets
        self._unread.append((step, torch.stack(losses), targets, grad_norm))
        return lr

    def _samples(self, step: int, micro: int) -> range:
        """Numbers of the samples in a micro-batch."""
        return micro_batch_samples(step, micro, self.train.global_batch_size, self.train.micro_batch_size)

    def _loss(self, samples: range) -> torch.Tensor:
        """Next-token cross-entropy of some samples, summed over their targets, in fp32.

        Samples are read when it is their turn: from the page cache four of 2,049 tokens take 0.03 ms, so there is
        nothing for a background thread to hide.

        The logits are kept whole: recomputing them in chunks of 512 tokens saved 15-18% of the memory and cost 9-11% of
        the speed (15 layers of SmolLM2-135M, vocabulary 49,152, 4 x 512 tokens, CPU).
        """
        tokens_BT1 = torch.from_numpy(self.data.batch(self.sampler.blocks(samples)))
        if self.fabric.device.type == "cuda":
            tokens_BT1 = tokens_BT1.pin_memory()  # so that the copy does not wait for the device
        tokens_BT1 = tokens_BT1.to(self.fabric.device, non_blocking=True)
        # Padding follows the last target, so causal attention never sees the token that stands in for it.
        logits_BTV = self.model(tokens_BT1[:, :-1].clamp(min=0))
        return F.cross_entropy(
            logits_BTV.float().flatten(0, 1), tokens_BT1[:, 1:].flatten(), reduction="sum", ignore_index=PADDING
        )

    def _validate(self) -> ValidationResult:
        return validate(
            self.model, self.val_data, self.train.micro_batch_size, self.plan.val_blocks, self.fabric.device
        )

    def _read_losses(self) -> tuple[float, float]:
        """Check the steps since the last reading; loss (mean over tokens) and gradient norm of the newest.

        Raises:
            UserError: one of them is not finite.
        """
        loss = norm = math.nan
        for step, losses_M, targets, grad_norm in self._unread:
            losses, norm = losses_M.tolist(), grad_norm.item()
            loss = losses_M.double().sum().item() / targets
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise UserError(self._broken(step, loss, losses, norm))
        self._unread.clear()
        return loss, norm

    def _broken(self, step: int, loss: float, losses: list[float], norm: float) -> str:
        """What happened in a step that is not finite, with the samples that did it."""
        micros = [micro for micro, loss in enumerate(losses) if not math.isfinite(loss)] or [0, len(losses) - 1]
        first, last = self._samples(step, micros[0])[0], self._samples(step, micros[-1])[-1]
        kept = f"the state of step {self._saved_step} is kept" if self._saved_step else "no state was saved before it"
        return (
            f"loss {loss} and gradient norm {norm} at step {step + 1}, samples {first} to "
            f"{last} of seed {self.sampler.seed}; {kept}; lower --optimizer.lr or look at the data"
        )


def _columns(validation: ValidationResult) -> dict[str, float]:
    return {"val_loss": validation.loss, "val_stderr": validation.stderr}
