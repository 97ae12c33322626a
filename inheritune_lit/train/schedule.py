"""The learning rate as a function of the step."""

import math
from dataclasses import dataclass

from inheritune_lit.train.args import Schedule


def learning_rate(
    step: int,
    *,
    schedule: Schedule,
    lr: float,
    min_lr: float,
    warmup_steps: int,
    total_steps: int,
    decay_steps: int = 0,
) -> float:
    """Linear warm-up, then the schedule.

    ``cosine`` falls as half a cosine to ``min_lr``; ``constant`` stays at ``lr``; ``wsd`` (warm-up, stable, decay)
    stays at ``lr`` and falls linearly to ``min_lr`` over the last ``decay_steps``.

    Args:
        step: number of the optimizer step, from 0.
        lr: the highest rate, that of step ``warmup_steps`` - 1.
        min_lr: rate of the last step of ``cosine`` and ``wsd``.
        warmup_steps: steps of warm-up; step 0 already has lr / warmup_steps.
        total_steps: steps of the run.
        decay_steps: of ``wsd``.
    """
    if step < warmup_steps:
        return lr * (step + 1) / warmup_steps
    if schedule == "constant":
        return lr
    if schedule == "wsd":
        return lr - (lr - min_lr) * max(0, step + 1 - (total_steps - decay_steps)) / max(1, decay_steps)
    done = (step + 1 - warmup_steps) / (total_steps - warmup_steps)
    return min_lr + 0.5 * (lr - min_lr) * (1 + math.cos(math.pi * done))


_MEMORY = 0.98
"""Weight of the past in the running mean: about the last 50 steps."""
_SETTLED = 20
"""Steps before a jump is judged."""


@dataclass
class LossGuard:
    """Judges steps before their gradients are applied.

    Attributes:
        max_jump: nats that a step's loss may lie above the running mean of the good ones; None judges no jumps.
        mean: running mean of the loss over good steps.
        steps: good steps seen.
        skipped: bad steps left out.
    """

    max_jump: float | None
    mean: float = math.nan
    steps: int = 0
    skipped: int = 0

    def fault(self, loss: float, grad_norm: float) -> str | None:
        """What is wrong with a step, or None after taking its loss into the mean."""
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            return f"loss {loss} and gradient norm {grad_norm}"
        if self.max_jump is not None and self.steps >= _SETTLED and loss > self.mean + self.max_jump:
            return f"loss {loss:.4f} jumps from a mean of {self.mean:.4f}"
        self.mean = loss if self.steps == 0 else _MEMORY * self.mean + (1 - _MEMORY) * loss
        self.steps += 1
        return None

    def state(self) -> dict[str, float | int]:
        """What a restart needs."""
        return {"mean": self.mean, "steps": self.steps, "skipped": self.skipped}

    def restore(self, state: dict[str, float | int]) -> None:
        """Continue from a saved ``state``."""
        self.mean, self.steps, self.skipped = state["mean"], int(state["steps"]), int(state["skipped"])
