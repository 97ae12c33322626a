"""Fixed validation: the same blocks in the same order every time, with a standard error."""

import math
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from inheritune_lit.data.packed import PackedDataset
from inheritune_lit.progress import Progress


@dataclass(frozen=True)
class ValidationResult:
    """Loss in nats a token.

    Attributes:
        loss: mean over blocks of the blocks' mean cross-entropy.
        stderr: standard error of that mean over blocks (NaN for a single block).
        blocks: blocks seen.
        tokens: targets seen.
    """

    loss: float
    stderr: float
    blocks: int
    tokens: int


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
    progress = Progress(label, n_blocks, "block") if label else None
    for first in range(0, n_blocks, batch_size):
        chosen = range(first, min(first + batch_size, n_blocks))
        tokens_BT1 = torch.stack([torch.from_numpy(dataset[block]) for block in chosen]).to(device)
        logits_BTV = model(tokens_BT1[:, :-1])
        loss_BT = F.cross_entropy(logits_BTV.float().transpose(1, 2), tokens_BT1[:, 1:], reduction="none")
        losses += loss_BT.double().mean(dim=1).tolist()
        if progress:
            progress.update(len(chosen))
    if progress:
        progress.close()
    mean = math.fsum(losses) / n_blocks
    variance = math.fsum((loss - mean) ** 2 for loss in losses) / (n_blocks - 1) if n_blocks > 1 else math.nan
    return ValidationResult(mean, math.sqrt(variance / n_blocks), n_blocks, n_blocks * dataset.block_size)
