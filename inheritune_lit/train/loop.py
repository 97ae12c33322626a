"""The training loop: optimizer steps, logging, validation, saving, stopping."""

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from lightning.fabric import Fabric
from torch.nn import functional as F

from inheritune_lit.data.packed import PackedDataset
from inheritune_lit.data.sampler import BlockSampler
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
        run_dir: where state and metrics go.
        seed: seed of the data order.
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
        val_data: PackedDataset,
        run_dir: Path,
        seed: int,
    ) -> None:
        self.fabric, self.model, self.optimizer = fabric, model, optimizer
        self.plan, self.train, self.eval, self.optimizer_args = plan, train, eval, optimizer_args
        self.data, self.val_data, self.run_dir = data, val_data, run_dir
        self.sampler = BlockSampler(len(data), seed)

    def fit(self, tensorboard: bool) -> tuple[int, ValidationResult | None]:
        """Train to the end, or until SIGTERM or Ctrl-C, from the saved state where there is one.

        Returns:
            Steps done, and the last validation, or None when the run was stopped before its end.

        Raises:
            UserError: the loss is not finite, or the state cannot be saved or read.
            KeyboardInterrupt: after saving, when stopped with Ctrl-C.
        """
        step, self._seconds = load_state(self.run_dir, self.model, self.optimizer)
        self._saved_step = step
        self._log = MetricsLog(self.run_dir, step, tensorboard)
        validation = None
        if step == 0 and self.eval.initial_validation:
            first = self._validate()
            self._log.write({"step": 0, "tokens": 0, "seconds": 0.0, **_columns(first)})
            print(f"loss before training: {first.loss:.4f} ± {first.stderr:.4f}", flush=True)
        self._logged_step, self._logged_seconds = step, self._seconds
        with _stop_signals() as received, Progress("train", self.plan.total_steps, "step", done=step) as progress:
            while step < self.plan.total_steps and not received:
                validation = self._advance(step, received, progress)
                step += 1
        self._log.close()
        if received and step < self.plan.total_steps:
            print(f"stopped after step {step}, saved; the same command continues", flush=True)
            if signal.SIGINT in received:
                raise KeyboardInterrupt
            return step, None
        return step, validation or self._validate()

    def _advance(self, step: int, received: list[signal.Signals], progress: Progress) -> ValidationResult | None:
        """Do optimizer step number ``step`` and whatever is due after it; returns the validation, if there was one."""
        start = time.perf_counter()
        loss, grad_norm, lr = self._step(step)
        done = step + 1
        last = done == self.plan.total_steps
        validates = done % self.eval.interval == 0 or last
        saves = not last and (bool(received) or done % (self.train.save_interval or done + 1) == 0)
        if not (done % self.train.log_interval == 0 or saves or validates):
            self._seconds += time.perf_counter() - start
            progress.update(1)
            return None
        # Reading the loss waits for the device, so it happens only here. Nothing is saved or scored unseen.
        row = {"step": done, "tokens": done * self.plan.tokens_per_step, "loss": loss.item(), "lr": lr}
        row["grad_norm"] = grad_norm.item()
        self._check_finite(row["loss"], row["grad_norm"], step)
        self._seconds += time.perf_counter() - start
        row |= {"tokens_per_s": self._tokens_per_second(done), "seconds": self._seconds}
        note = f"loss {row['loss']:.4f}, {row['tokens_per_s']:,.0f} tokens/s"
        validation = None
        if validates:
            validation = self._validate()
            row |= _columns(validation)
            note += f", held-out {validation.loss:.4f} ± {validation.stderr:.4f}"
        self._log.write(row)
        if saves:
            save_state(self.run_dir, self.model, self.optimizer, done, self._seconds)
            self._saved_step = done
        progress.update(1, note)
        return validation

    def _tokens_per_second(self, step: int) -> float:
        """Speed of training since the last logged step, validation and saving left out."""
        steps, seconds = step - self._logged_step, self._seconds - self._logged_seconds
        self._logged_step, self._logged_seconds = step, self._seconds
        return steps * self.plan.tokens_per_step / seconds

    def _step(self, step: int) -> tuple[torch.Tensor, torch.Tensor, float]:
        """One optimizer step; loss (mean over the step's tokens), gradient norm before clipping, learning rate."""
        lr = cosine_with_warmup(
            step,
            lr=self.optimizer_args.lr,
            min_lr=self.train.min_lr,
            warmup_steps=self.train.lr_warmup_steps,
            total_steps=self.plan.total_steps,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        losses = []
        first = step * self.train.global_batch_size
        for micro in range(self.plan.accumulation):
            samples = range(
                first + micro * self.train.micro_batch_size, first + (micro + 1) * self.train.micro_batch_size
            )
            loss = self._loss(samples)
            self.fabric.backward(loss / self.plan.accumulation)
            losses.append(loss.detach())
        max_norm = self.train.max_norm if self.train.max_norm is not None else float("inf")
        grad_norm = self.fabric.clip_gradients(self.model, self.optimizer, max_norm=max_norm, error_if_nonfinite=False)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return torch.stack(losses).mean(), grad_norm, lr

    def _loss(self, samples: range) -> torch.Tensor:
        """Mean next-token cross-entropy of some samples, in fp32."""
        tokens_BT1 = torch.stack([torch.from_numpy(self.data[self.sampler[i]]) for i in samples])
        tokens_BT1 = tokens_BT1.to(self.fabric.device)
        logits_BTV = self.model(tokens_BT1[:, :-1])
        return F.cross_entropy(logits_BTV.float().flatten(0, 1), tokens_BT1[:, 1:].flatten())

    def _validate(self) -> ValidationResult:
        return validate(
            self.model, self.val_data, self.train.micro_batch_size, self.plan.val_blocks, self.fabric.device
        )

    def _check_finite(self, loss: float, grad_norm: float, step: int) -> None:
        if math.isfinite(loss) and math.isfinite(grad_norm):
            return
        first = self._logged_step * self.train.global_batch_size
        last = (step + 1) * self.train.global_batch_size - 1
        raise UserError(
            f"loss {loss} and gradient norm {grad_norm} at step {step + 1}: it broke in steps {self._logged_step + 1} "
            f"to {step + 1} (samples {first} to {last} of seed {self.sampler.seed}); the state of step "
            f"{self._saved_step} is kept; lower --optimizer.lr or look at the data"
        )


def _columns(validation: ValidationResult) -> dict[str, float]:
    return {"val_loss": validation.loss, "val_stderr": validation.stderr}


@contextmanager
def _stop_signals() -> Iterator[list[signal.Signals]]:
    """Collect SIGTERM and SIGINT while the block runs, so that a step is finished before the run stops."""
    received: list[signal.Signals] = []
    if threading.current_thread() is not threading.main_thread():
        yield received  # Python lets only the main thread handle signals
        return

    def note(number: int, frame: object) -> None:
        received.append(signal.Signals(number))

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
