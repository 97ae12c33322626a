"""Packed data that new files are added to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inheritune_lit.checkpoint.manifest import read_manifest, sha256_file
from inheritune_lit.checkpoint.output import check_vacant
from inheritune_lit.data.hub import SCHEME
from inheritune_lit.data.options import differing_option
from inheritune_lit.data.sources import SourceFile
from inheritune_lit.errors import UserError


@dataclass(frozen=True)
class Existing:
    """Packed data and what is new beside it.

    Attributes:
        folder: the packed data.
        manifest: its manifest.
        packed_sources: the manifest's records of the sources in it.
        new_sources: sources that are not in it.
    """

    folder: Path
    manifest: dict[str, Any]
    packed_sources: list[dict[str, Any]]
    new_sources: list[SourceFile]


def open_existing(out_dir: Path, plan: Mapping[str, Any], sources: Sequence[SourceFile]) -> Existing | None:
    """Packed data at ``out_dir``, or None where nothing is there.

    Raises:
        UserError: something else is there; or it was made with another tokenizer or other options; or one of its
            sources has changed or is gone; or it is a subset, which more files would change.
    """
    manifest = read_manifest(out_dir) if out_dir.is_dir() else None
    if manifest is None or manifest.get("kind") != "packed_data" or "sources" not in manifest:
        check_vacant(out_dir)
        return None
    if manifest["tokenizer"]["sha256"] != plan["tokenizer"]["sha256"]:
        raise UserError(f"{out_dir} was made with another tokenizer; give another --out_dir or remove it")
    if difference := differing_option(manifest["options"], plan["options"]):
        raise UserError(f"{out_dir} was made with other options: {difference}; give another --out_dir or remove it")
    files = {file.name: file for file in sources}
    for record in manifest["sources"]:
        _check_source(out_dir, record, files.get(record["name"]))
    packed = {record["name"] for record in manifest["sources"]}
    new = [file for file in sources if file.name not in packed]
    if new and plan["options"].get("max_tokens") is not None:
        raise UserError(
            f"{out_dir} is a random subset of {len(packed)} files, which {new[0].path} would change; "
            "give another --out_dir"
        )
    return Existing(out_dir, manifest, manifest["sources"], new)


def _check_source(out_dir: Path, record: Mapping[str, Any], file: SourceFile | None) -> None:
    advice = "give another --out_dir, or put the former file back"
    if file is None:
        raise UserError(f"{record['path']} is in {out_dir} and no longer in the source; {advice}")
    if file.version == record["version"] and file.bytes == record["bytes"]:
        return
    # A copy has another time stamp; only the content counts.
    local = not file.path.startswith(SCHEME)
    if not local or file.bytes != record["bytes"] or sha256_file(Path(file.path)) != record["sha256"]:
        raise UserError(f"{file.path} has changed since {out_dir} was made; {advice}")
