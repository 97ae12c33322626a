"""The learning rate as a function of the step."""

import math
from typing import Literal

Schedule = Literal["cosine", "constant", "wsd"]


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
