"""What a report takes from the manifests of slices, which others may have written or damaged, and names of runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inheritune_lit import RunRecord
from inheritune_lit.errors import UserError, printable
from inheritune_lit.io.records import to_record

_REMEDY = "restore it, or leave the folder out"


@dataclass(frozen=True)
class _Reference:
    source: str
    name: str
    n_layer: int
    files: list[dict[str, Any]] | None = None


@dataclass(frozen=True)
class Inherited:
    """The slice that a run goes back to; ``layers`` is None for fresh weights."""

    reference: _Reference
    n_layer: int
    layers: list[int] | None
    parameters: dict[str, int]
    seed: int
    init: str = "inherit"
    parts: list[str] | None = None
    embeddings: bool = False
    final_norm: bool = False
    head: bool = False


def read_inherited(run: RunRecord) -> Inherited | None:
    """Returns the slice that a run goes back to over any number of runs, None where that is gone.

    Raises:
        UserError: its manifest is damaged.
    """
    if run.slice is None:
        return None
    slice = to_record(run.slice, Inherited, run.folder, "a run that goes back to a slice", _REMEDY, others=True)
    layers, depth = slice.layers, slice.reference.n_layer
    if layers is not None and (len(layers) != slice.n_layer or not all(0 <= layer < depth for layer in layers)):
        raise UserError(f"{run.folder} goes back to a slice of {depth} layers with layers {layers}; {_REMEDY}")
    return slice


def short_names(folders: Sequence[Path]) -> list[str]:
    """Returns the last part of each path, or as many as tell it from the others."""
    parts = [folder.resolve().parts for folder in folders]
    names = []
    for own in parts:
        counts = range(1, len(own))
        count = next((n for n in counts if sum(other[-n:] == own[-n:] for other in parts) == 1), len(own))
        names.append(printable("/".join(own[-count:])))
    return names
