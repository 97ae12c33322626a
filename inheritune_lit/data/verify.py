"""``inheritune prepare --verify``: does a packed folder still hold what its manifest says?"""

from dataclasses import dataclass
from pathlib import Path

from inheritune_lit.data.megatron import open_documents
from inheritune_lit.data.packed import SPLITS, load_packed_manifest
from inheritune_lit.errors import UserError
from inheritune_lit.io.manifest import sha256_file
from inheritune_lit.io.progress import Progress


@dataclass(frozen=True)
class VerifyResult:
    """A packed folder that is as its manifest says."""

    folder: Path
    files: int
    tokens: int

    def __str__(self) -> str:
        return f"{self.folder}: {self.files} files with {self.tokens:,} tokens are as the manifest says"


def verify_packed(folder: Path) -> VerifyResult:
    """Compare every file's size and SHA-256, and every domain's counts, with the manifest.

    Args:
        folder: made by ``inheritune prepare``.

    Raises:
        UserError: something differs, is missing, or is there without being listed.
    """
    manifest = load_packed_manifest(folder)
    files = manifest.get("files")
    if files is None:
        raise UserError(f"{folder} was packed by a version that recorded no hashes; prepare it again")
    faults = [f"{name} is missing" for name in files if not (folder / name).is_file()]
    there = {
        f"{split}/{path.name}"
        for split in SPLITS
        for ending in ("bin", "idx")
        for path in (folder / split).glob(f"*.{ending}")
    }
    faults += [f"{name} is not listed" for name in sorted(there - set(files))]
    with Progress("verify", sum(record["bytes"] for record in files.values()), "B") as progress:
        for name, record in files.items():
            path = folder / name
            if not path.is_file():
                continue
            size = path.stat().st_size
            if size != record["bytes"]:
                faults.append(f"{name} has {size} bytes instead of {record['bytes']}")
            elif sha256_file(path) != record["sha256"]:
                faults.append(f"{name} has another SHA-256 than when it was written")
            progress.update(size)
    if not faults:
        faults = _wrong_counts(folder, manifest["domains"])
    if faults:
        more = f" and {len(faults) - 1} more" if len(faults) > 1 else ""
        raise UserError(f"{folder} differs from its manifest: {faults[0]}{more}; run `inheritune prepare` again")
    tokens = sum(record[split]["tokens"] for record in manifest["domains"].values() for split in SPLITS)
    return VerifyResult(folder, len(files), tokens)


def _wrong_counts(folder: Path, domains: dict) -> list[str]:
    faults = []
    for domain, record in domains.items():
        for split in SPLITS:
            if record[split]["documents"]:
                tokens, lengths = open_documents(folder / split / domain)
                if (len(lengths), len(tokens)) != (record[split]["documents"], record[split]["tokens"]):
                    faults.append(f"{split}/{domain} holds {len(tokens)} tokens of {len(lengths)} documents")
    return faults
