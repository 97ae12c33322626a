"""Loss on the validation part of packed data."""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from inheritune_lit.data.packed import PackedDataset
from inheritune_lit.evaluation.held_out import validate
from inheritune_lit.evaluation.lit_lm import LitLM
from inheritune_lit.evaluation.ranks import Place
from inheritune_lit.io.manifest import MANIFEST, sha256_file
from inheritune_lit.model.flops import LONGEST_BLOCK

NAME = "held_out"
"""The record's name beside those of tasks."""
_TOKENS_A_BATCH = 8192


@dataclass(frozen=True)
class HeldOut:
    """What to score.

    Attributes:
        folder: packed data.
        blocks: of its validation part; all when None.
        max_seq_length: tokens a block; the model's context, at most 2048, when None.
    """

    folder: Path
    blocks: int | None
    max_seq_length: int | None

    def describe(self) -> dict[str, Any]:
        """What identifies this part of a result."""
        return {
            "val_sha256": sha256_file(self.folder / MANIFEST),
            "val_blocks": self.blocks,
            "max_seq_length": self.max_seq_length,
        }


def score_held_out(lm: LitLM, label: str, held_out: HeldOut, place: Place) -> dict[str, Any]:
    """The model's loss in nats a token, as ``validate`` has it, ready for JSON.

    Args:
        lm: the opened model.
        label: for the progress line.
        held_out: what to score.
        place: where the model is, and who shares the work.
    """
    block_size = held_out.max_seq_length or min(lm.max_length, LONGEST_BLOCK)
    dataset = PackedDataset(held_out.folder, "val", block_size)
    batch_size = max(1, _TOKENS_A_BATCH // block_size)
    told = f"{label}: held-out text" if place.is_first else None
    result = validate(lm.model, dataset, batch_size, held_out.blocks, place.device, told, place.ranks)
    record = asdict(result) | {"block_size": block_size}
    for part in (record, *record["domains"].values()):
        if math.isnan(part["stderr"]):  # which JSON does not know
            part["stderr"] = None
    return record
