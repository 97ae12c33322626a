"""Held-out loss: the same samples in the same order every time, with a standard error, against the reference's."""

import json
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.fabric import Fabric
from litgpt.model import GPT
from torch.nn import functional as F

from inheritune_lit.data.manifest import content_sha256
from inheritune_lit.data.packed import PADDING, PackedDataset
from inheritune_lit.errors import UserError
from inheritune_lit.evaluation.ranks import Ranks
from inheritune_lit.inherit.reference import ResolvedReference
from inheritune_lit.io.folders import replace_text
from inheritune_lit.io.progress import Progress
from inheritune_lit.io.reading import read_json
from inheritune_lit.io.records import to_record


@dataclass(frozen=True)
class DomainLoss:
    """Loss in nats per token: mean cross-entropy over all targets, with the numbers of blocks and of targets seen.

    ``stderr`` is its standard error when blocks are drawn independently (NaN for a single block). Where blocks have
    different numbers of targets, it is that of a ratio of means (Cochran, "Sampling Techniques", 1977, eq. 6.10).
    """

    loss: float
    stderr: float
    blocks: int
    tokens: int


@dataclass(frozen=True)
class ValidationResult(DomainLoss):
    """Loss over all blocks, and on each domain that was seen."""

    domains: dict[str, DomainLoss]


@dataclass(frozen=True)
class BlockLosses:
    """What a paired comparison needs of the single blocks, in the order in which every model gets them.

    ``losses`` are in nats, summed over a block's targets; ``targets`` says how many these are.
    """

    losses: list[float]
    targets: list[int]
    domains: list[str]


class Stopped(Exception):
    """A validation was left before its end, as its caller wished."""


def validate(
    model: torch.nn.Module,
    dataset: PackedDataset,
    batch_size: int,
    max_blocks: int | None = None,
    label: str | None = None,
    ranks: Ranks = Ranks(),
    stop: Callable[[], bool] | None = None,
) -> ValidationResult:
    """Mean next-token cross-entropy over the same blocks of a data set every time; arguments as ``block_losses``."""
    return summarize(block_losses(model, dataset, batch_size, max_blocks, label, ranks, stop))


def summarize(scored: BlockLosses) -> ValidationResult:
    """Mean loss over all blocks and by domain."""
    by_domain: dict[str, list[tuple[float, int]]] = {}
    for domain, loss, count in zip(scored.domains, scored.losses, scored.targets, strict=True):
        by_domain.setdefault(domain, []).append((loss, count))
    domains = {domain: DomainLoss(*mean_loss(*zip(*pairs, strict=True))) for domain, pairs in by_domain.items()}
    return ValidationResult(*mean_loss(scored.losses, scored.targets), domains)


@torch.no_grad()
def block_losses(
    model: torch.nn.Module,
    dataset: PackedDataset,
    batch_size: int,
    max_blocks: int | None = None,
    label: str | None = None,
    ranks: Ranks = Ranks(),
    stop: Callable[[], bool] | None = None,
) -> BlockLosses:
    """Next-token cross-entropy of each of the same blocks of a data set every time.

    Args:
        model: maps token ids (B, T) to logits (B, T, V).
        batch_size: blocks per forward pass.
        max_blocks: how many blocks, spread evenly over the data set and so over its domains; all when None.
        label: shows progress under this name; silent when None.
        ranks: processes that share the work and all get the result; each has the same model on its device.
        stop: asked before each forward pass; where it says yes on one rank, all of them leave.

    Raises:
        Stopped: ``stop`` said yes.
    """
    blocks = spread(dataset, max_blocks)
    n_blocks = len(blocks)
    losses_N = torch.zeros(n_blocks, dtype=torch.float64)
    starts = range(0, n_blocks, batch_size)
    passes = math.ceil(len(starts) / ranks.world) * ranks.world
    with Progress(label or "", n_blocks, "block", hidden=label is None) as progress:
        # Every rank does as many forward passes as the others, which a sharded model needs: spare ones repeat the last.
        for number in range(ranks.rank, passes, ranks.world):
            if stop and ranks.add_up(torch.tensor(float(stop()))).item():
                raise Stopped
            start = starts[min(number, len(starts) - 1)]
            chosen = blocks[start : start + batch_size]
            tokens_BT1 = torch.from_numpy(dataset.batch(chosen)).to(ranks.device)
            losses_B = batch_losses(model, tokens_BT1)
            if number < len(starts):
                losses_N[start : start + batch_size] = losses_B
            progress.update(len(chosen))
    losses = ranks.add_up(losses_N).tolist()
    return BlockLosses(losses, dataset.targets(blocks).tolist(), dataset.domains_of(blocks))


def spread(dataset: PackedDataset, max_blocks: int | None) -> list[int]:
    """Numbers of at most ``max_blocks`` blocks, spread evenly over the data set; all when None."""
    count = len(dataset) if max_blocks is None else min(max_blocks, len(dataset))
    return [number * len(dataset) // count for number in range(count)]


@torch.no_grad()
def batch_losses(model: torch.nn.Module, tokens_BT1: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of each block of a batch, summed over its targets: (B,), float64, on the CPU."""
    # Padding follows the last target, so causal attention never sees the token that stands in for it.
    logits_BVT = model(tokens_BT1[:, :-1].clamp(min=0)).float().transpose(1, 2)
    loss_BT = F.cross_entropy(logits_BVT, tokens_BT1[:, 1:], reduction="none", ignore_index=PADDING)
    return loss_BT.double().sum(dim=1).cpu()


def mean_loss(losses: Sequence[float], targets: Sequence[int]) -> tuple[float, float, int, int]:
    """Mean over targets, its standard error, blocks and targets, from the blocks' summed losses."""
    blocks, tokens = len(losses), sum(targets)
    mean = math.fsum(losses) / tokens
    if blocks == 1:
        return mean, math.nan, blocks, tokens
    squares = math.fsum((loss - mean * count) ** 2 for loss, count in zip(losses, targets, strict=True))
    return mean, math.sqrt(squares * blocks / (blocks - 1)) / tokens, blocks, tokens


@dataclass(frozen=True)
class HeldOutEvaluator:
    """Measures every model in the same way: same samples, same precision, same devices, which share the samples.

    ``data`` is the validation part of packed data, cut into samples as ``documents`` says; ``blocks`` of them are
    measured, the same ones as in training's own validation, ``batch_size`` per forward pass.
    """

    fabric: Fabric
    data: PackedDataset
    documents: str
    blocks: int
    batch_size: int
    precision: str

    def measure(self, path: Path, identity: dict[str, Any], label: str, load: Callable[..., GPT]) -> BlockLosses:
        """Losses from the file ``path`` where it holds those of the same model and data, else measured and kept there.

        ``identity`` is what the model is, JSON types only; ``load`` gives it for ``dtype`` and ``device``.
        """
        device = self.fabric.device
        of = {
            "model": identity,
            "data_sha256": content_sha256(self.data.folder),
            "documents": self.documents,
            "block_size": self.data.block_size,
            "blocks": self.blocks,
            "precision": self.precision,
            "device": device.type,
        }
        found = _read(path, of)
        self.fabric.barrier()  # before the first rank writes what the others look for
        if found is not None:
            return found
        model = load(dtype=torch.bfloat16 if self.precision == "bf16-true" else torch.float32, device=device)
        model.max_seq_length = self.data.block_size
        ranks = Ranks.of(self.fabric)
        shown = label if ranks.is_first else None
        with torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16-mixed"):
            scored = block_losses(model, self.data, self.batch_size, self.blocks, shown, ranks)
        if ranks.is_first:
            replace_text(path, json.dumps({"of": of, **asdict(scored)}) + "\n")
        self.fabric.barrier()
        return scored


def reference_identity(opened: ResolvedReference) -> dict[str, Any]:
    """What the reference is: where it comes from, and the hashes of its files."""
    return {"source": opened.source, "files": opened.file_hashes()}


def _read(path: Path, of: dict[str, Any]) -> BlockLosses | None:
    """The losses in a file, None where it is not there, damaged or of something else."""
    with suppress(UserError):
        content = read_json(path)
        if content.pop("of", None) == of:
            return to_record(content, BlockLosses, path, "losses of samples")
    return None


Z = 1.645
"""Standard errors of a one-sided bound with 95% confidence."""

Verdict = Literal["met", "worse", "undecided"]


@dataclass(frozen=True)
class Comparison:
    """A model against the reference on the same samples, in nats per token.

    Attributes:
        difference: mean of the samples' differences, model minus reference.
        stderr: its standard error. Paired: what makes a sample hard for both cancels, so it is far below that of
            either loss.
        margin: how much worse the model may be.
        verdict: "met" if the difference is at most ``margin`` with 95% confidence (a test of non-inferiority), "worse"
            if it is above with the same confidence, "undecided" if the samples are too few to tell.
    """

    loss: float
    reference: float
    difference: float
    stderr: float
    margin: float
    verdict: Verdict

    @property
    def met(self) -> bool:
        """Whether the model has grown enough."""
        return self.verdict == "met"

    def words(self) -> str:
        """The decision with the numbers that it rests on."""
        low, high = self.difference - Z * self.stderr, self.difference + Z * self.stderr
        decision = {
            "met": f"not worse than the reference: {high:+.4f} <= {self.margin:g}",
            "worse": f"worse than the reference: {low:+.4f} > {self.margin:g}",
            "undecided": f"undecided: {low:+.4f} to {high:+.4f} holds {self.margin:g}, more samples would tell",
        }[self.verdict]
        return (
            f"held-out loss {self.loss:.4f}, reference {self.reference:.4f}: difference {self.difference:+.4f} ± "
            f"{self.stderr:.4f} (paired), margin {self.margin:g}; {decision}"
        )


def compare(model: BlockLosses, reference: BlockLosses, margin: float) -> Comparison:
    """Decide from the losses of the same samples, at least two, with a margin in nats per token."""
    differences = [ours - theirs for ours, theirs in zip(model.losses, reference.losses, strict=True)]
    difference, stderr, _, _ = mean_loss(differences, model.targets)
    verdict: Verdict = "undecided"
    if difference + Z * stderr <= margin:
        verdict = "met"
    elif difference - Z * stderr > margin:
        verdict = "worse"
    loss, theirs = (mean_loss(side.losses, side.targets)[0] for side in (model, reference))
    return Comparison(loss, theirs, difference, stderr, margin, verdict)
