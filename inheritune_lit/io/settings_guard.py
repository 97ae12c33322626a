"""Recorded settings of a folder against those asked for now."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from inheritune_lit.errors import UserError
from inheritune_lit.io.folders import check_vacant
from inheritune_lit.io.manifest import read_manifest


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


def _differences(old: Any, new: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Names of the settings that differ, with both values."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            yield from _differences(old.get(key), new.get(key), f"{name}.{key}" if name else key)
    elif old != new:
        yield name, old, new
