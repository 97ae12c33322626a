"""Fixed validation: the same blocks in the same order every time, with a standard error."""

import math
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from inheritune_lit.data.packed import PADDING, PackedDataset
from inheritune_lit.evaluation.ranks import Ranks
from inheritune_lit.io.progress import Progress


@dataclass(frozen=True)
class DomainLoss:
    """Loss on one domain, in nats per token; see ``ValidationResult``."""

    loss: float
    stderr: float
    blocks: int
    tokens: int


@dataclass(frozen=True)
class ValidationResult:
    """Loss in nats per token.

    Attributes:
        loss: mean cross-entropy over all targets.
        stderr: its standard error when blocks are drawn independently (NaN for a single block). Where blocks have
            different numbers of targets, that of a ratio of means (Cochran, "Sampling Techniques", 1977, eq. 6.10).
        blocks: blocks seen.
        tokens: targets seen.
        domains: the same for each domain that was seen.
    """

    loss: float
    stderr: float
    blocks: int
    tokens: int
    domains: dict[str, DomainLoss]


@dataclass(frozen=True)
class BlockLosses:
    """Losses of the single blocks, in the order in which every model gets them: what a paired comparison needs.

    Attributes:
        losses: nats, summed over a block's targets.
        targets: how many these are.
        domains: where the blocks come from.
    """

    losses: list[float]
    targets: list[int]
    domains: list[str]


def validate(
    model: torch.nn.Module,
    dataset: PackedDataset,
    batch_size: int,
    max_blocks: int | None = None,
    device: torch.device | str = "cpu",
    label: str | None = None,
    ranks: Ranks = Ranks(),
) -> ValidationResult:
    """Mean next-token cross-entropy over the same blocks of a data set every time; arguments as ``block_losses``."""
    scored = block_losses(model, dataset, batch_size, max_blocks, device, label, ranks)
    by_domain: dict[str, list[int]] = {}
    for number, domain in enumerate(scored.domains):
        by_domain.setdefault(domain, []).append(number)
    domains = {
        domain: DomainLoss(
            *mean_loss([scored.losses[number] for number in numbers], [scored.targets[number] for number in numbers])
        )
        for domain, numbers in by_domain.items()
    }
    return ValidationResult(*mean_loss(scored.losses, scored.targets), domains)


@torch.no_grad()
def block_losses(
    model: torch.nn.Module,
    dataset: PackedDataset,
    batch_size: int,
    max_blocks: int | None = None,
    device: torch.device | str = "cpu",
    label: str | None = None,
    ranks: Ranks = Ranks(),
) -> BlockLosses:
    """Next-token cross-entropy of each of the same blocks of a data set every time.

    Args:
        model: maps token ids (B, T) to logits (B, T, V).
        dataset: blocks to score, in their own order.
        batch_size: blocks a forward pass.
        max_blocks: how many blocks, spread evenly over the data set and so over its domains; all when None.
        device: where the model is.
        label: shows progress under this name; silent when None.
        ranks: processes that share the work and all get the result; each has the same model.
    """
    n_blocks = len(dataset) if max_blocks is None else min(max_blocks, len(dataset))
    blocks = [number * len(dataset) // n_blocks for number in range(n_blocks)]
    losses_N = torch.zeros(n_blocks, dtype=torch.float64)
    rank, world = ranks.rank, ranks.world
    starts = range(0, n_blocks, batch_size)
    progress = Progress(label, n_blocks, "block") if label else None
    # Every rank does as many forward passes as the others, which a sharded model needs: spare ones do the last again.
    for number in range(rank, math.ceil(len(starts) / world) * world, world):
        start = starts[min(number, len(starts) - 1)]
        chosen = blocks[start : start + batch_size]
        tokens_BT1 = torch.from_numpy(dataset.batch(chosen)).to(device)
        # Padding follows the last target, so causal attention never sees the token that stands in for it.
        logits_BTV = model(tokens_BT1[:, :-1].clamp(min=0))
        loss_BT = F.cross_entropy(
            logits_BTV.float().transpose(1, 2), tokens_BT1[:, 1:], reduction="none", ignore_index=PADDING
        )
        if number < len(starts):
            losses_N[start : start + batch_size] = loss_BT.double().sum(dim=1).cpu()
        if progress:
            progress.update(len(chosen))
    if progress:
        progress.close()
    losses = ranks.add_up(losses_N).tolist()
    return BlockLosses(losses, dataset.targets(blocks).tolist(), dataset.domains_of(blocks))


def mean_loss(losses: list[float], targets: list[int]) -> tuple[float, float, int, int]:
    """Mean over targets, its standard error, blocks and targets, from the blocks' summed losses."""
    blocks, tokens = len(losses), sum(targets)
    mean = math.fsum(losses) / tokens
    if blocks == 1:
        return mean, math.nan, blocks, tokens
    squares = math.fsum((loss - mean * count) ** 2 for loss, count in zip(losses, targets, strict=True))
    return mean, math.sqrt(squares * blocks / (blocks - 1)) / tokens, blocks, tokens
