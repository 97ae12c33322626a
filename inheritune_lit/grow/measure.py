"""Held-out losses of single samples, kept in files that say what they are of."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from litgpt.model import GPT

from inheritune_lit.checkpoint.manifest import sha256_file
from inheritune_lit.checkpoint.output import replace_text
from inheritune_lit.checkpoint.weights import Weights
from inheritune_lit.data.packed import PackedDataset, content_sha256
from inheritune_lit.evaluation.sharing import Ranks
from inheritune_lit.inherit.locate import Located
from inheritune_lit.train.devices import Precision
from inheritune_lit.validation import BlockLosses, block_losses


@dataclass(frozen=True)
class Judge:
    """Measures every model in the same way: same samples, same precision, same device.

    Attributes:
        fabric: devices that share the samples.
        data: validation part of packed data.
        documents: how it is cut into samples.
        blocks: samples, the same ones as in training's own validation.
        batch_size: samples a forward pass.
        precision: of weights and computing.
    """

    fabric: Fabric
    data: PackedDataset
    documents: str
    blocks: int
    batch_size: int
    precision: Precision

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


def reference_identity(located: Located, weights: Weights) -> dict[str, Any]:
    """What the reference is: where it comes from, and the hashes of its files."""
    if located.repository:
        files = located.repository.record(weights)
        hashes = {file["path"]: file["sha256"] for file in files}
    else:
        hashes = {path.name: sha256_file(path) for path in weights.files}
    return {"source": located.source, "files": hashes}


def _read(path: Path, of: dict[str, Any]) -> BlockLosses | None:
    """The losses in a file, None where it is not there, damaged or of something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["of"] != of:
            return None
        return BlockLosses(content["losses"], content["targets"], content["domains"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
