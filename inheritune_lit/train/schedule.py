"""The learning rate as a function of the step."""

import math


def cosine_with_warmup(step: int, *, lr: float, min_lr: float, warmup_steps: int, total_steps: int) -> float:
    """Linear warm-up, then half a cosine down to ``min_lr``.

    Args:
        step: number of the optimizer step, from 0.
        lr: rate of step ``warmup_steps`` - 1, the highest.
        min_lr: rate of the last step.
        warmup_steps: steps of warm-up; step 0 already has lr / warmup_steps.
        total_steps: steps of the run.
    """
    if step < warmup_steps:
        return lr * (step + 1) / warmup_steps
    done = (step + 1 - warmup_steps) / (total_steps - warmup_steps)
    return min_lr + 0.5 * (lr - min_lr) * (1 + math.cos(math.pi * done))
