"""What a run will do and cost, in words."""

from typing import Any

from inheritune_lit.data.mixture import Mixture
from inheritune_lit.train.args import TrainArgs
from inheritune_lit.train.plan import RunPlan


def plan_text(
    plan: RunPlan, name: str, train: TrainArgs, mixture: Mixture, changes: list[dict[str, Any]], device: str
) -> str:
    """Lines that tell a run.

    Args:
        name: the model's.
        changes: of the run's data, the last one is told.
        device: what it runs on, and in which precision.
    """
    samples = plan.total_steps * train.global_batch_size
    positions = plan.total_steps * plan.tokens_per_step
    left_over = f" ({plan.budget:,} asked for: whole steps only)" if plan.budget != plan.tokens else ""
    # Weights, gradients and AdamW's two moments in fp32; activations depend on the kernels and come on top.
    memory_gb = 16 * plan.parameters / 1e9
    lines = [
        f"train {name}: {plan.parameters:,} parameters, {memory_gb:.2f} GB with optimizer state, activations on top",
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
    if changes:
        lines.append(f"data changed at sample {changes[-1]['sample']:,}, before: {'; '.join(changes[-1]['different'])}")
    return "\n      ".join(lines)
