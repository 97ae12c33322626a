"""Held-out losses of single samples, kept in files that say what they are of."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.fabric import Fabric
from litgpt.model import GPT

from inheritune_lit.data.manifest import content_sha256
from inheritune_lit.data.packed import PackedDataset
from inheritune_lit.evaluation.held_out import BlockLosses, block_losses, mean_loss
from inheritune_lit.evaluation.ranks import Ranks
from inheritune_lit.inherit.resolve import ResolvedReference
from inheritune_lit.io.folders import replace_text


@dataclass(frozen=True)
class HeldOutEvaluator:
    """Measures every model in the same way: same samples, same precision, same device.

    Attributes:
        fabric: devices that share the samples.
        data: validation part of packed data.
        documents: how it is cut into samples.
        blocks: samples, the same ones as in training's own validation.
        batch_size: samples per forward pass.
        precision: of weights and computing.
    """

    fabric: Fabric
    data: PackedDataset
    documents: str
    blocks: int
    batch_size: int
    precision: str

    def measure(self, path: Path, identity: dict[str, Any], label: str, load: Callable[..., GPT]) -> BlockLosses:
        """Losses from ``path`` where it holds those of the same model and data; measured and written there otherwise.

        Args:
            path: a JSON file.
            identity: what the model is, JSON types only.
            label: for the progress line.
            load: gives the model for ``dtype`` and ``device``.
        """
        of = {"model": identity, **self._setting()}
        found = _read(path, of)
        self.fabric.barrier()  # before the first rank writes what the others look for
        if found is not None:
            return found
        low = self.precision == "bf16-true"
        model = load(dtype=torch.bfloat16 if low else torch.float32, device=self.fabric.device)
        model.max_seq_length = self.data.block_size
        ranks = Ranks.of(self.fabric)
        first = self.fabric.global_rank == 0
        with torch.autocast(self.fabric.device.type, torch.bfloat16, enabled=self.precision == "bf16-mixed"):
            scored = block_losses(
                model, self.data, self.batch_size, self.blocks, self.fabric.device, label if first else None, ranks
            )
        if first:
            replace_text(path, json.dumps({"of": of, **asdict(scored)}) + "\n")
        self.fabric.barrier()
        return scored

    def _setting(self) -> dict[str, Any]:
        """What identifies the samples and the arithmetic."""
        return {
            "data_sha256": content_sha256(self.data.folder),
            "documents": self.documents,
            "block_size": self.data.block_size,
            "blocks": self.blocks,
            "precision": self.precision,
            "device": self.fabric.device.type,
        }


def reference_identity(opened: ResolvedReference) -> dict[str, Any]:
    """What the reference is: where it comes from, and the hashes of its files."""
    return {"source": opened.source, "files": opened.file_hashes()}


def _read(path: Path, of: dict[str, Any]) -> BlockLosses | None:
    """The losses in a file, None where it is not there, damaged or of something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["of"] != of:
            return None
        return BlockLosses(content["losses"], content["targets"], content["domains"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


Z = 1.645
"""Standard errors of a one-sided bound with 95% confidence."""


@dataclass(frozen=True)
class Comparison:
    """A model against the reference on the same samples, in nats per token.

    Attributes:
        loss, reference: mean losses.
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
    verdict: Literal["met", "worse", "undecided"]

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
    """Decide from the losses of the same samples.

    Args:
        model, reference: losses of at least two samples.
        margin: nats per token.
    """
    differences = [ours - theirs for ours, theirs in zip(model.losses, reference.losses, strict=True)]
    difference, stderr, _, _ = mean_loss(differences, model.targets)
    verdict: Literal["met", "worse", "undecided"] = "undecided"
    if difference + Z * stderr <= margin:
        verdict = "met"
    elif difference - Z * stderr > margin:
        verdict = "worse"
    loss, _, _, _ = mean_loss(model.losses, model.targets)
    reference_loss, _, _, _ = mean_loss(reference.losses, reference.targets)
    return Comparison(loss, reference_loss, difference, stderr, margin, verdict)
