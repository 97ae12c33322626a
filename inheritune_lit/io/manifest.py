"""``inheritune.json``: what made a folder, from what, with which versions."""

import hashlib
import json
import os
import sys
from contextlib import suppress
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from inheritune_lit.io.folders import replace_text
from inheritune_lit.io.reading import read_json

MANIFEST = "inheritune.json"
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
    """Write ``folder/inheritune.json``; ``kind`` is "slice", "packed_data", "run", "evaluation" or "analysis"."""
    created = datetime.now(timezone.utc).isoformat(timespec="seconds")
    replace_manifest(folder, {"kind": kind, "created": created, "versions": installed_versions(), **record})


def replace_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Put another manifest into a folder that has one; a kill leaves the one or the other."""
    replace_text(folder / MANIFEST, json.dumps(manifest, indent=2) + "\n")


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The folder's manifest, or None where there is none; one that is not a JSON object is a ``UserError``."""
    path = folder / MANIFEST
    return read_json(path, remedy="make the folder again") if os.path.lexists(path) else None
