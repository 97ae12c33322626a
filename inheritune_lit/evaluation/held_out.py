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
from torch import Tensor
from torch.nn import functional as F

from inheritune_lit.data.manifest import content_sha256
from inheritune_lit.data.packed import PADDING, PackedDataset
from inheritune_lit.errors import UserError
from inheritune_lit.evaluation.score_cache import Ranks, ScoreCache, SharedWork, request_key
from inheritune_lit.inherit.reference import ResolvedReference
from inheritune_lit.io.folders import replace_text
from inheritune_lit.io.progress import Progress
from inheritune_lit.io.reading import read_json
from inheritune_lit.io.records import to_record
from inheritune_lit.model.devices import batches_per_wait, to_device

Model = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class DomainLoss:
    """Loss in nats per token: mean cross-entropy over all targets, with the numbers of blocks and of targets seen."""

    loss: float
    # Of blocks drawn independently, a ratio of means (Cochran, "Sampling Techniques", 1977, eq. 6.10); NaN of one.
    stderr: float
    blocks: int
    tokens: int


@dataclass(frozen=True)
class ValidationResult(DomainLoss):
    """Loss over all blocks, and on each domain that was seen."""

    domains: dict[str, DomainLoss]


@dataclass(frozen=True)
class BlockLosses:
    """What a paired comparison needs of the single blocks, in the order in which every model gets them."""

    losses: list[float]  # in nats, summed over a block's targets
    targets: list[int]  # how many these are
    domains: list[str]


class Stopped(Exception):
    """A validation was left before its end, as its caller wished."""


def validate(
    model: Model, dataset: PackedDataset, batch_size: int, max_blocks: int | None = None, **options: Any
) -> ValidationResult:
    """Mean next-token cross-entropy over the same blocks of a data set every time; arguments as ``block_losses``."""
    scored = block_losses(model, dataset, batch_size, max_blocks, **options)
    by_domain: dict[str, list[tuple[float, int]]] = {}
    for domain, loss, count in zip(scored.domains, scored.losses, scored.targets, strict=True):
        by_domain.setdefault(domain, []).append((loss, count))
    domains = {domain: DomainLoss(*mean_loss(*zip(*pairs, strict=True))) for domain, pairs in by_domain.items()}
    return ValidationResult(*mean_loss(scored.losses, scored.targets), domains)


@torch.no_grad()
def block_losses(
    model: Model,
    dataset: PackedDataset,
    batch_size: int,
    max_blocks: int | None = None,
    label: str | None = None,
    ranks: Ranks = Ranks(),
    stop: Callable[[], bool] | None = None,
    cache: ScoreCache | None = None,
    check: Callable[[Tensor], None] | None = None,
) -> BlockLosses:
    """Next-token cross-entropy of each of the same blocks of a data set every time.

    Args:
        model: maps token ids (B, T) to logits (B, T, V).
        batch_size: blocks per forward pass.
        max_blocks: how many blocks, spread evenly over the data set and so over its domains; all when None.
        label: the first rank shows progress under this name; silent when None.
        ranks: processes that share the work and all get the result; each has the same model on its device.
        stop: asked before each forward pass; where it says yes on one rank, all of them leave with ``Stopped``.
        cache: has losses that this model had before, and gets the new ones.
        check: refuses losses (B,) by raising, before they are kept.
    """
    count = len(dataset) if max_blocks is None else min(max_blocks, len(dataset))
    blocks = [number * len(dataset) // count for number in range(count)]
    work = SharedWork(cache or ScoreCache(None, {}), ranks)
    names = [request_key("held out", dataset[block].tobytes()) if cache else "" for block in blocks]
    # Row: 1 where there is a loss, the loss.
    losses_N2, left = work.find(names, torch.zeros(count, 2, dtype=torch.float64), lambda loss: [1.0, loss])

    def losses_of(group: list[int]) -> Tensor:
        parts = []
        for start in range(0, len(group), batch_size):
            if stop and ranks.add_up(torch.tensor(float(stop()))).item():
                raise Stopped
            tokens_BT1 = torch.from_numpy(dataset.batch([blocks[each] for each in group[start : start + batch_size]]))
            tokens_BT1 = to_device(tokens_BT1, ranks.device)
            # Padding follows the last target, so causal attention never sees the token that stands in for it. Flat:
            # with (B, V, T) the loss is summed over V in an order that loses a digit, and is several times slower.
            logits_NV = model(tokens_BT1[:, :-1].clamp(min=0)).flatten(0, 1).float()
            targets_N = tokens_BT1[:, 1:].flatten()
            loss_N = F.cross_entropy(logits_NV, targets_N, reduction="none", ignore_index=PADDING)
            parts.append(loss_N.view(len(tokens_BT1), -1).double().sum(dim=1))
        losses_G = torch.cat(parts).cpu()
        if check:
            check(losses_G)
        return torch.stack([torch.ones_like(losses_G), losses_G], dim=1)

    # Of several ranks each does one batch at a time, which a sharded model needs.
    size = batch_size * (batches_per_wait(ranks.device) if ranks.world == 1 else 1)
    batches = [left[start : start + size] for start in range(0, len(left), size)]
    hidden, done = label is None or not ranks.is_first, count - len(left)
    with Progress(label or "", count, "block", done, hidden=hidden) as progress:
        work.compute(batches, names, losses_N2, losses_of, lambda row: row[1], progress)
    return BlockLosses(losses_N2[:, 1].tolist(), dataset.targets(blocks).tolist(), dataset.domains_of(blocks))


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
    """Measures every model in the same way: same samples, same precision, same devices, which share the samples."""

    fabric: Fabric
    data: PackedDataset  # the validation part
    documents: str  # how it was cut into samples
    blocks: int  # samples that are measured, the same ones as in training's own validation
    batch_size: int  # samples per forward pass
    precision: str

    def measure(self, path: Path, identity: dict[str, Any], label: str, load: Callable[..., GPT]) -> BlockLosses:
        """Losses in ``path`` of this ``identity`` (JSON types) and data, or measured on ``load``'s model, and kept."""
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
        found = None
        with suppress(UserError):  # it is not there, or damaged
            kept = read_json(path)
            if kept.pop("of", None) == of:
                found = to_record(kept, BlockLosses, path, "losses of samples")
        self.fabric.barrier()  # before the first rank writes what the others look for
        if found is not None:
            return found
        model = load(dtype=torch.bfloat16 if self.precision == "bf16-true" else torch.float32, device=device)
        model.max_seq_length = self.data.block_size
        ranks = Ranks.of(self.fabric)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16-mixed"):
            scored = block_losses(model, self.data, self.batch_size, self.blocks, label, ranks)
        if ranks.is_first:
            replace_text(path, json.dumps({"of": of, **asdict(scored)}) + "\n")
        self.fabric.barrier()
        return scored


def reference_identity(opened: ResolvedReference) -> dict[str, Any]:
    """What the reference is: where it comes from, and the hashes of its files."""
    return {"source": opened.source, "files": opened.file_hashes()}


Z = 1.645  # standard errors of a one-sided bound with 95% confidence

Verdict = Literal["met", "worse", "undecided"]


@dataclass(frozen=True)
class Comparison:
    """A model against the reference on the same samples, in nats per token: a test of non-inferiority."""

    loss: float
    reference: float
    difference: float  # mean over the samples, model minus reference
    stderr: float  # of it, far below that of either loss, because what makes a sample hard for both cancels
    margin: float
    verdict: Verdict  # "met" where at most the margin with 95% confidence, "worse" where above it, else "undecided"

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
        losses = f"held-out loss {self.loss:.4f}, reference {self.reference:.4f}"
        difference = f"difference {self.difference:+.4f} ± {self.stderr:.4f} (paired)"
        return f"{losses}: {difference}, margin {self.margin:g}; {decision}"


def compare(model: BlockLosses, reference: BlockLosses, margin: float) -> Comparison:
    """Decide from the losses of the same samples, at least two, with a margin in nats per token."""
    differences = [ours - theirs for ours, theirs in zip(model.losses, reference.losses, strict=True)]
    difference, stderr, _, _ = mean_loss(differences, model.targets)
    low, high = difference - Z * stderr, difference + Z * stderr
    verdict: Verdict = "met" if high <= margin else "worse" if low > margin else "undecided"
    loss, theirs = (mean_loss(side.losses, side.targets)[0] for side in (model, reference))
    return Comparison(loss, theirs, difference, stderr, margin, verdict)
