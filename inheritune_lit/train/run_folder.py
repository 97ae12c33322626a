"""The folder of a run: which settings it belongs to, and what it ends with."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inheritune_lit.checkpoint.folder import FINAL
from inheritune_lit.checkpoint.manifest import read_manifest, replace_manifest, write_manifest
from inheritune_lit.checkpoint.output import check_vacant, new_folder
from inheritune_lit.errors import UserError
from inheritune_lit.train.data_change import DATA_SETTINGS


@dataclass(frozen=True)
class RunResult:
    """Outcome of ``pretrain``.

    Attributes:
        final: the trained checkpoint, or None when the run was stopped before its end.
        steps, tokens: done so far, over all restarts.
        val_loss, val_stderr: of the trained checkpoint, None when the run was stopped.
    """

    final: Path | None
    steps: int
    tokens: int
    val_loss: float | None
    val_stderr: float | None


def find_run(run_dir: Path, settings: dict[str, Any]) -> RunResult | None:
    """Check that a folder is free for a run or holds the same one, data aside; nothing is written.

    Args:
        run_dir: the run folder.
        settings: everything that changes the outcome, JSON types only.

    Returns:
        The result, where the run is finished.

    Raises:
        UserError: the folder holds something else, or a run with other settings.
    """
    if check_folder(run_dir, "run", settings, DATA_SETTINGS) is None:
        return None
    final = read_manifest(run_dir / FINAL) if (run_dir / FINAL).is_dir() else None
    if final is None:
        return None
    return RunResult(run_dir / FINAL, final["steps"], final["tokens"], final["val_loss"], final["val_stderr"])


def check_folder(
    folder: Path, kind: str, settings: dict[str, Any], free: tuple[str, ...] = ()
) -> dict[str, Any] | None:
    """The manifest of a folder that was started with the same settings, None where nothing was started.

    Args:
        folder: the folder.
        kind: what its manifest has to be.
        settings: everything that changes the outcome, JSON types only.
        free: names of settings that are not compared here.

    Raises:
        UserError: the folder holds something else, or was started with other settings.
    """
    manifest = read_manifest(folder) if folder.is_dir() else None
    if manifest is None:
        check_vacant(folder)
        return None
    if manifest.get("kind") != kind:
        raise UserError(f"{folder} holds a {manifest.get('kind')}, not a {kind}; give another --out_dir")
    for name, old, new in _differences(manifest.get("settings", {}), settings):
        if name.split(".")[0] in free:
            continue
        raise UserError(
            f"{folder} was started with {name} {old!r}, not {new!r}; use the old value or give another --out_dir"
        )
    return manifest


def begin_run(run_dir: Path, settings: dict[str, Any], changes: list[dict[str, Any]]) -> None:
    """Make the folder of a run, unless ``find_run`` found it there; record a change of its data.

    Args:
        changes: from ``data_changes``.
    """
    manifest = read_manifest(run_dir)
    if manifest is None:
        with new_folder(run_dir) as staging:
            write_manifest(staging, "run", {"settings": settings, "data_changes": changes})
    elif manifest["data_changes"] != changes:
        replace_manifest(run_dir, {**manifest, "settings": settings, "data_changes": changes})


def _differences(old: Any, new: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Names of the settings that differ, with both values."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            yield from _differences(old.get(key), new.get(key), f"{name}.{key}" if name else key)
    elif old != new:
        yield name, old, new
