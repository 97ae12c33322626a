"""The manifests of a run and of its trained checkpoint: which values they have, whatever was done to them."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inheritune_lit.checkpoint.folder import FINAL
from inheritune_lit.io.manifest import MANIFEST, read_manifest
from inheritune_lit.io.records import to_record
from inheritune_lit.train.args import EvalArgs

_REMEDY = "restore it, or give another folder"


@dataclass(frozen=True)
class _Domain:
    sha256: str
    train_blocks: int
    train_tokens: int


@dataclass(frozen=True)
class DataSettings:
    """What a run's data is."""

    data: str
    data_sha256: str
    documents: str
    mixture: dict[str, float] | str
    domains: dict[str, _Domain]


@dataclass(frozen=True)
class _Change:
    sample: int
    drawn: dict[str, int]
    different: list[str]
    was: DataSettings


@dataclass(frozen=True)
class _Train:
    global_batch_size: int
    max_seq_length: int | None = None


@dataclass(frozen=True)
class _Eval:
    samples: int | None
    interval: int = EvalArgs.interval
    max_iters: int | None = None


@dataclass(frozen=True)
class _Numbers:
    """Settings that are computed with."""

    train: _Train
    eval: _Eval


@dataclass(frozen=True, kw_only=True)
class RunSettings(DataSettings):
    """What a run was started with, as far as it is read again."""

    initial_checkpoint_dir: str
    initial_weights_sha256: str
    train: dict[str, Any]
    eval: dict[str, int | None]
    optimizer: dict[str, Any]
    precision: str
    seed: int
    fp8: bool = False
    distill: dict[str, Any] | None = None
    total_steps: int = 0
    device: str = ""


@dataclass(frozen=True)
class RunManifest:
    """What is read of a run's ``inheritune.json``."""

    settings: RunSettings
    data_changes: list[_Change] = field(default_factory=list)
    id: str | None = None
    created: str = "unknown"
    versions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Final:
    """What is read of the manifest of its trained checkpoint."""

    steps: int
    tokens: int
    val_loss: float
    val_stderr: float
    parent: dict[str, Any] | None = None


def read_run_manifest(folder: Path) -> tuple[dict[str, Any], RunManifest] | None:
    """The manifest of a run as it is, and checked; None where the folder holds none, or something else's."""
    manifest = read_manifest(folder) if folder.is_dir() else None
    if manifest is None or manifest.get("kind") != "run":
        return None
    about = (folder / MANIFEST, "the manifest of a run", _REMEDY, True)
    checked = to_record(manifest, RunManifest, *about)
    to_record(manifest["settings"], _Numbers, *about)
    return manifest, checked


def read_final(folder: Path) -> dict[str, Any] | None:
    """The manifest of a run's trained checkpoint, checked; None where there is none."""
    path, what = folder / FINAL, "the manifest of a trained checkpoint"
    if (final := read_manifest(path)) is not None:
        to_record(final, _Final, path / MANIFEST, what, _REMEDY, others=True)
    return final
