"""What a run will do and cost, in words."""

from typing import Any

from inheritune_lit.data.mixture import Mixture
from inheritune_lit.train.args import TrainArgs
from inheritune_lit.train.memory import StepMemory
from inheritune_lit.train.plan import RunPlan


def plan_text(
    plan: RunPlan,
    name: str,
    train: TrainArgs,
    mixture: Mixture,
    changes: list[dict[str, Any]],
    device: str,
    memory: StepMemory,
    learns_from: str | None = None,
) -> str:
    """Lines that tell a run.

    Args:
        name: the model's.
        changes: of the run's data, the last one is told.
        device: what it runs on, and in which precision.
        memory: predicted for a step.
        learns_from: the teacher, None without one.
    """
    samples = plan.total_steps * train.global_batch_size
    positions = plan.total_steps * plan.tokens_per_step
    left_over = f" ({plan.budget:,} asked for: whole steps only)" if plan.budget != plan.tokens else ""
    lines = [
        f"train {name}: {plan.parameters:,} parameters, {memory_text(memory)}",
        f"{plan.total_steps:,} steps of {plan.tokens_per_step:,} tokens = {positions:,} tokens",
    ]
    if plan.tokens < positions:
        lines[-1] += f", {1 - plan.tokens / positions:.1%} of them padding, leaves about {plan.tokens:,} tokens"
    lines[-1] += left_over
    if mixture.draws is None:
        lines[-1] += f", {samples / mixture.blocks:.2f} epochs of {mixture.blocks:,} samples"
    else:
        width = max(map(len, mixture.domains))
        lines += [
            f"  {domain:<{width}} {float(mixture.share(domain)):7.2%} of the samples, "
            f"{mixture.epochs(domain, samples):.2f} epochs of {size.blocks:,}"
            for domain, size in mixture.domains.items()
        ]
    lines += [
        f"{plan.accumulation} micro-batches of {train.micro_batch_size} x {plan.block_size} a step, "
        f"{plan.val_blocks:,} samples a validation",
        f"{positions * plan.flops_per_token:.2e} FLOPs on {device}",
    ]
    if learns_from:
        lines.insert(1, f"learns from {learns_from}, its forward pass counted below")
    if changes:
        lines.append(f"data changed at sample {changes[-1]['sample']:,}, before: {'; '.join(changes[-1]['different'])}")
    return "\n      ".join(lines)


def memory_text(memory: StepMemory) -> str:
    """A step's memory in words."""
    model = memory.weights + memory.gradients + memory.optimizer
    batch = memory.total - model - memory.teacher
    teacher = f"{_size(memory.teacher)} teacher, " if memory.teacher else ""
    return f"{_size(memory.total)} ({_size(model)} model and optimizer, {teacher}{_size(batch)} a micro-batch)"


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"
