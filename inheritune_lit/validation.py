"""Fixed validation: the same blocks in the same order every time, with a standard error."""

import math
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from inheritune_lit.data.packed import PADDING, PackedDataset
from inheritune_lit.progress import Progress


@dataclass(frozen=True)
class DomainLoss:
    """Loss on one domain, in nats a token; see ``ValidationResult``."""

    loss: float
    stderr: float
    blocks: int
    tokens: int


@dataclass(frozen=True)
class ValidationResult:
    """Loss in nats a token.

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


@torch.no_grad()
def validate(
    model: torch.nn.Module,
    dataset: PackedDataset,
    batch_size: int,
    max_blocks: int | None = None,
    device: torch.device | str = "cpu",
    label: str | None = None,
) -> ValidationResult:
    """Mean next-token cross-entropy over the first blocks of a data set.

    Args:
        model: maps token ids (B, T) to logits (B, T, V).
        dataset: blocks to score, in their own order.
        batch_size: blocks a forward pass.
        max_blocks: how many blocks; all when None.
        device: where the model is.
        label: shows progress under this name; silent when None.
    """
    n_blocks = len(dataset) if max_blocks is None else min(max_blocks, len(dataset))
    losses: list[float] = []
    targets: list[int] = []
    by_domain: dict[str, list[int]] = {}
    progress = Progress(label, n_blocks, "block") if label else None
    for first in range(0, n_blocks, batch_size):
        chosen = range(first, min(first + batch_size, n_blocks))
        tokens_BT1 = torch.from_numpy(dataset.batch(chosen)).to(device)
        # Padding follows the last target, so causal attention never sees the token that stands in for it.
        logits_BTV = model(tokens_BT1[:, :-1].clamp(min=0))
        loss_BT = F.cross_entropy(
            logits_BTV.float().transpose(1, 2), tokens_BT1[:, 1:], reduction="none", ignore_index=PADDING
        )
        losses += loss_BT.double().sum(dim=1).tolist()
        targets += dataset.targets(chosen).tolist()
        for block, domain in zip(chosen, dataset.domains_of(chosen), strict=True):
            by_domain.setdefault(domain, []).append(block)
        if progress:
            progress.update(len(chosen))
    if progress:
        progress.close()
    domains = {
        domain: DomainLoss(*_mean([losses[block] for block in blocks], [targets[block] for block in blocks]))
        for domain, blocks in by_domain.items()
    }
    return ValidationResult(*_mean(losses, targets), domains)


def _mean(losses: list[float], targets: list[int]) -> tuple[float, float, int, int]:
    """Mean over targets, its standard error, blocks and targets, from the blocks' summed losses."""
    blocks, tokens = len(losses), sum(targets)
    mean = math.fsum(losses) / tokens
    if blocks == 1:
        return mean, math.nan, blocks, tokens
    squares = math.fsum((loss - mean * count) ** 2 for loss, count in zip(losses, targets, strict=True))
    return mean, math.sqrt(squares * blocks / (blocks - 1)) / tokens, blocks, tokens
