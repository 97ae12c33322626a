"""Packed data: a folder of tokens by split and domain, read in blocks."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from inheritune_lit.data.megatron import open_documents
from inheritune_lit.data.mixture import DomainSize
from inheritune_lit.data.packing import PackedCut, SeparateCut
from inheritune_lit.errors import UserError
from inheritune_lit.io.manifest import read_manifest, sha256_file
from inheritune_lit.io.progress import Progress

SPLITS = ("train", "val")
# Stands where a block has no token; as a target, torch's cross-entropy ignores it.
PADDING = -100


def load_packed_manifest(folder: Path) -> dict[str, Any]:
    """Returns the manifest of a folder made by ``inheritune prepare``.

    Raises:
        UserError: the folder is missing or holds something else.
    """
    if not folder.is_dir():
        raise UserError(f"no packed data at {folder}; make it with `inheritune prepare`")
    manifest = read_manifest(folder)
    if manifest is None or manifest.get("kind") != "packed_data":
        raise UserError(f"{folder} is not packed data; make it with `inheritune prepare`")
    return manifest


def content_sha256(folder: Path) -> str:
    """Returns a hash of what packed data holds: equal for the same text prepared again in the same way, wherever."""
    manifest = load_packed_manifest(folder)
    content = {
        "tokenizer": manifest["tokenizer"]["sha256"],
        "dtype": manifest["dtype"],
        "options": manifest["options"],
        "domains": {name: _domain_content(record) for name, record in manifest["domains"].items()},
    }
    return _sha256(content)


def domain_sha256s(folder: Path) -> dict[str, str]:
    """Returns a hash of what each domain holds."""
    return {name: _sha256(_domain_content(record)) for name, record in load_packed_manifest(folder)["domains"].items()}


def _domain_content(record: dict[str, Any]) -> list[Any]:
    return [record[split] for split in SPLITS] + [source["sha256"] for source in record["sources"]]


def _sha256(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class VerifyResult:
    """A packed folder that is as its manifest says."""

    folder: Path
    files: int
    tokens: int

    def __str__(self) -> str:
        return f"{self.folder}: {self.files} files with {self.tokens:,} tokens are as the manifest says"


def verify_packed(folder: Path) -> VerifyResult:
    """Compares every file's size and SHA-256, and every domain's counts, with the manifest of a packed folder.

    Raises:
        UserError: something differs, is missing, or is there without being listed.
    """
    manifest = load_packed_manifest(folder)
    files, domains = manifest.get("files"), manifest["domains"]
    if files is None:
        raise UserError(f"{folder} was packed by a version that recorded no hashes; prepare it again")
    there = {
        path.relative_to(folder).as_posix()
        for split in SPLITS
        for path in (folder / split).glob("*")
        if path.suffix in (".bin", ".idx")
    }
    faults = [f"{name} is missing" for name in files if name not in there]
    faults += [f"{name} is not listed" for name in sorted(there - set(files))]
    with Progress("verify", sum(described["bytes"] for described in files.values()), "B") as progress:
        for name in (name for name in files if name in there):
            size = (folder / name).stat().st_size
            if size != files[name]["bytes"]:
                faults.append(f"{name} has {size} bytes instead of {files[name]['bytes']}")
            elif sha256_file(folder / name) != files[name]["sha256"]:
                faults.append(f"{name} has another SHA-256 than when it was written")
            progress.update(size)
    for domain, split in () if faults else ((domain, split) for domain in domains for split in SPLITS):
        count = domains[domain][split]
        if count["documents"]:
            tokens, lengths = open_documents(folder / split / domain)
            if (len(lengths), len(tokens)) != (count["documents"], count["tokens"]):
                faults.append(f"{split}/{domain} holds {len(tokens)} tokens of {len(lengths)} documents")
    if faults:
        more = f" and {len(faults) - 1} more" if len(faults) > 1 else ""
        raise UserError(f"{folder} differs from its manifest: {faults[0]}{more}; run `inheritune prepare` again")
    return VerifyResult(folder, len(files), sum(domains[name][split]["tokens"] for name in domains for split in SPLITS))


class PackedDataset:
    """One split of packed data as a fixed list of blocks.

    A block is at most ``block_size`` inputs and their targets, one token later; no token is a target twice. Domains
    follow each other in order of their names.

    Args:
        folder: packed data.
        split: "train" or "val".
        block_size: tokens of input per block.
        documents: "packed" cuts each domain's tokens every ``block_size`` tokens, across documents; "separate" cuts
            each document for itself and fills its last block with padding.

    Attributes:
        domains: sizes by domain, also of those without a block.

    Raises:
        UserError: the folder is not packed data, a file is damaged, or no domain fills a block.
    """

    def __init__(
        self, folder: Path, split: str, block_size: int, documents: Literal["packed", "separate"] = "packed"
    ) -> None:
        self.folder, self.split, self.block_size = folder, split, block_size
        records = load_packed_manifest(folder)["domains"]
        self._tokens, self._cuts, self.domains = [], [], {}
        for domain in sorted(records):
            tokens, lengths = self._open(domain, records[domain][split])
            cut = PackedCut(len(tokens), block_size) if documents == "packed" else SeparateCut(lengths, block_size)
            self._tokens.append(np.asarray(tokens))  # slices of a memmap cost several times as much
            self._cuts.append(cut)
            self.domains[domain] = DomainSize(cut.blocks, cut.targets)
        self._ends = np.cumsum([cut.blocks for cut in self._cuts])
        if not self._ends[-1]:
            total = sum(map(len, self._tokens))
            raise UserError(
                f"{folder / split} holds {total} tokens, too few for one block of {block_size}; "
                "give more text or shorter samples (--train.max_seq_length, or --seq_length of analyze)"
            )

    def _open(self, domain: str, recorded: dict[str, int]) -> tuple[np.ndarray, np.ndarray]:
        """Returns a domain's tokens and the lengths of its documents."""
        prefix = self.folder / self.split / domain
        if recorded["tokens"] == 0 and not prefix.with_name(f"{domain}.bin").exists():
            return np.zeros(0, dtype=np.uint16), np.zeros(0, dtype=np.int32)
        tokens, lengths = open_documents(prefix)
        if (len(lengths), len(tokens)) != (recorded["documents"], recorded["tokens"]):
            raise UserError(
                f"{prefix}.bin holds {len(tokens)} tokens of {len(lengths)} documents, the "
                f"manifest says {recorded['tokens']} of {recorded['documents']}; run `inheritune prepare` again"
            )
        return tokens, lengths

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, block: int) -> np.ndarray:
        """Returns the token ids of a block, int64, shape (block_size + 1,); see ``batch``."""
        return self.batch([block])[0]

    def batch(self, blocks: Sequence[int] | np.ndarray) -> np.ndarray:
        """Returns tokens of some blocks, int64, shape (blocks, block_size + 1), ``PADDING`` behind a document's end."""
        blocks_B = np.asarray(blocks, dtype=np.int64)
        tokens_BT1 = np.full((len(blocks_B), self.block_size + 1), PADDING, dtype=np.int64)
        for domain, rows, first_B, targets_B in self._spans(blocks_B):
            tokens = self._tokens[domain]
            for row, first, targets in zip(rows.tolist(), first_B.tolist(), targets_B.tolist(), strict=True):
                tokens_BT1[row, : targets + 1] = tokens[first : first + targets + 1]
        return tokens_BT1

    def targets(self, blocks: Sequence[int] | np.ndarray) -> np.ndarray:
        """Returns how many targets some blocks have, int64, shape (blocks,); their tokens are not read."""
        blocks_B = np.asarray(blocks, dtype=np.int64)
        counts_B = np.empty(len(blocks_B), dtype=np.int64)
        for _, rows, _, targets_B in self._spans(blocks_B):
            counts_B[rows] = targets_B
        return counts_B

    def domains_of(self, blocks: Sequence[int] | np.ndarray) -> list[str]:
        """Returns the names of the domains that some blocks come from."""
        names = list(self.domains)
        return [names[domain] for domain in self._domain_numbers(np.asarray(blocks, dtype=np.int64)).tolist()]

    def _spans(self, blocks_B: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
        """Yields blocks by domain: its number, which of the blocks are its, where they begin, and their targets."""
        domains_B = self._domain_numbers(blocks_B)
        for domain in np.unique(domains_B).tolist():
            rows = np.flatnonzero(domains_B == domain)
            cut = self._cuts[domain]
            yield domain, rows, *cut.spans(blocks_B[rows] - (self._ends[domain] - cut.blocks))

    def _domain_numbers(self, blocks_B: np.ndarray) -> np.ndarray:
        outside_B = (blocks_B < 0) | (blocks_B >= len(self))
        if outside_B.any():
            raise IndexError(f"block {blocks_B[outside_B][0]} of {len(self)}")
        return np.searchsorted(self._ends, blocks_B, side="right")
