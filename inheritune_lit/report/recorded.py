"""What a report takes from the manifests of runs and slices, which others may have written or damaged."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inheritune_lit import RunRecord
from inheritune_lit.errors import UserError, printable
from inheritune_lit.io.records import to_record

_REMEDY = "restore it, or leave the folder out"


@dataclass(frozen=True)
class _File:
    path: str
    sha256: str | None = None


@dataclass(frozen=True)
class _Reference:
    source: str
    name: str
    n_layer: int
    files: list[_File] | None = None


@dataclass(frozen=True)
class _Parameters:
    total: int


@dataclass(frozen=True)
class Inherited:
    """The slice that a run goes back to; ``layers`` is None for fresh weights."""

    reference: _Reference
    n_layer: int
    layers: list[int] | None
    parameters: _Parameters
    seed: int
    init: str = "inherit"
    parts: list[str] | None = None
    embeddings: bool = False
    final_norm: bool = False
    head: bool = False


@dataclass(frozen=True)
class _Settings:
    initial_checkpoint_dir: str
    data: str
    train: dict[str, Any]
    optimizer: dict[str, Any]
    eval: dict[str, int | None]
    mixture: dict[str, float] | str = "proportional"
    precision: str | None = None
    seed: int | None = None
    documents: str | None = None
    fp8: bool = False
    distill: dict[str, Any] | None = None
    initial_weights_sha256: str = "unknown"
    data_sha256: str = "unknown"


@dataclass(frozen=True)
class Recorded:
    """The manifest of a run."""

    settings: _Settings
    created: str = "unknown"
    versions: dict[str, str] = field(default_factory=dict)


def read_recorded(folder: Path, manifest: dict[str, Any]) -> Recorded:
    """Returns what a run was started with; a UserError where its manifest says nothing of the kind."""
    return to_record(manifest, Recorded, folder, "a run", _REMEDY, others=True)


def read_inherited(run: RunRecord) -> Inherited | None:
    """Returns the slice that a run goes back to over any number of runs, None where that is gone.

    Raises:
        UserError: its manifest is damaged.
    """
    manifest: Any = run.parent
    while isinstance(manifest, dict) and manifest.get("kind") != "slice":
        manifest = manifest.get("parent")
    if manifest is None:
        return None
    slice = to_record(manifest, Inherited, run.folder, "a run that goes back to a slice", _REMEDY, others=True)
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
