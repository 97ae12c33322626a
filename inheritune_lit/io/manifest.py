"""``inheritune.json``: what made a folder, from what, with which versions and settings; these against asked ones."""

import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from inheritune_lit.errors import UserError
from inheritune_lit.io.folders import check_vacant, replace_text
from inheritune_lit.io.reading import read_json

MANIFEST = "inheritune.json"
_ANOTHER, OLD_VALUE = "give another --out_dir", "use the old value or give another --out_dir"
Settings = Mapping[str, Any]
_PACKAGES = ("litgpt", "lightning", "torch", "lm-eval", "transformers", "safetensors", "sentencepiece")


def sha256_file(path: Path, chunk_bytes: int = 1 << 22) -> str:
    """SHA-256 of a file's bytes as 64 hexadecimal digits, read in chunks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(chunk_bytes):
            digest.update(chunk)
    return digest.hexdigest()


def installed_versions() -> dict[str, str]:
    """Versions of this package, Python and the libraries that can change a result."""
    versions = {"python": sys.version.split()[0]}
    for package in ("inheritune-lit", *_PACKAGES):
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions


def write_manifest(folder: Path, kind: str, record: dict[str, Any]) -> None:
    """Write ``folder/inheritune.json``; ``kind`` is such as "slice", "packed_data" or "run"."""
    created = datetime.now(timezone.utc).isoformat(timespec="seconds")
    replace_manifest(folder, {"kind": kind, "created": created, "versions": installed_versions(), **record})


def replace_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Put another manifest into a folder that has one; a kill leaves the one or the other."""
    replace_text(folder / MANIFEST, json.dumps(manifest, indent=2) + "\n")


def read_manifest(folder: Path, kind: str | None = None) -> dict[str, Any] | None:
    """The folder's manifest; None where there is none, or one of another ``kind`` than is asked for.

    One that is not a JSON object is a ``UserError``.
    """
    path = folder / MANIFEST
    manifest = read_json(path, remedy="make the folder again") if os.path.lexists(path) else None
    return None if manifest is None or kind not in (None, manifest.get("kind")) else manifest


def check_folder(
    folder: Path, kind: str, settings: Settings, free: tuple[str, ...] = (), remedy: str = OLD_VALUE
) -> dict[str, Any] | None:
    """The manifest of a folder that was started with the same settings, None where nothing was started.

    ``settings`` change the outcome; ``free`` ones, such as "data", may differ. Other folders are a ``UserError``.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        check_vacant(folder, replaced=False)
        return None
    if manifest.get("kind") != kind:
        raise UserError(f"{folder} holds a {manifest.get('kind')}, not a {kind}; give another --out_dir")
    check_settings(f"{folder} was started", manifest.get("settings", {}), settings, remedy, free)
    return manifest


def check_settings(
    subject: str, recorded: Settings, wanted: Settings, remedy: str = _ANOTHER, free: tuple[str, ...] = ()
) -> None:
    """Refuse settings not ``free`` that differ: "runs/a was made with seed 1, not 2; give another --out_dir"."""
    for name, old, new in differences(recorded, wanted):
        if not any(f"{name}.".startswith(f"{each}.") for each in free):
            raise UserError(f"{subject} with {name} {old!r}, not {new!r}; {remedy}")


def differences(recorded: Any, wanted: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Names of the settings that differ, such as ``optimizer.lr``, with both values; what is not there is None."""
    if isinstance(recorded, Mapping) and isinstance(wanted, Mapping):
        for key in sorted(recorded.keys() | wanted.keys()):
            yield from differences(recorded.get(key), wanted.get(key), f"{name}.{key}" if name else key)
    elif recorded != wanted:
        yield name, recorded, wanted
