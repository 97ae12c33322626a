"""Packed data: a folder of tokens by split and domain, read in blocks."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from inheritune_lit.checkpoint.manifest import read_manifest
from inheritune_lit.data.megatron import open_documents
from inheritune_lit.errors import UserError

SPLITS = ("train", "val")


def load_packed_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder made by ``inheritune prepare``.

    Raises:
        UserError: the folder is missing or holds something else.
    """
    if not folder.is_dir():
        raise UserError(f"no packed data at {folder}; make it with `inheritune prepare`")
    manifest = read_manifest(folder)
    if manifest is None or manifest.get("kind") != "packed_data":
        raise UserError(f"{folder} is no packed data; make it with `inheritune prepare`")
    return manifest


def content_sha256(folder: Path) -> str:
    """Hash of what packed data holds: equal for the same text prepared again in the same way, wherever and whenever."""
    manifest = load_packed_manifest(folder)
    content = {
        "tokenizer": manifest["tokenizer"]["sha256"],
        "dtype": manifest["dtype"],
        "options": manifest["options"],
        "domains": {
            name: [record[split] for split in SPLITS] + [source["sha256"] for source in record["sources"]]
            for name, record in manifest["domains"].items()
        },
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class PackedDataset:
    """One split of packed data as a fixed list of blocks.

    A block is ``block_size`` inputs and their targets, one token later. Within a domain block b covers tokens
    [b * block_size, (b + 1) * block_size], so inputs don't overlap and each token is a target at most once; fewer than
    ``block_size`` + 1 tokens at the end of a domain are left out. Domains follow each other in order of their names.

    Args:
        folder: packed data.
        split: "train" or "val".
        block_size: tokens of input a block.

    Raises:
        UserError: the folder is no packed data, a file is damaged, or no domain fills a block.
    """

    def __init__(self, folder: Path, split: str, block_size: int) -> None:
        self.folder, self.split, self.block_size = folder, split, block_size
        domains = load_packed_manifest(folder)["domains"]
        self.domains = sorted(domains)
        self._tokens = []
        for domain in self.domains:
            tokens, lengths = open_documents(folder / split / domain)
            recorded = domains[domain][split]
            if (len(lengths), len(tokens)) != (recorded["documents"], recorded["tokens"]):
                raise UserError(
                    f"{folder / split / domain}.bin holds {len(tokens)} tokens of {len(lengths)} documents, the "
                    f"manifest says {recorded['tokens']} of {recorded['documents']}; run `inheritune prepare` again"
                )
            self._tokens.append(tokens)
        blocks = [max(0, len(tokens) - 1) // block_size for tokens in self._tokens]
        self._ends = np.cumsum(blocks)
        if not sum(blocks):
            total = sum(map(len, self._tokens))
            raise UserError(
                f"{folder / split} holds {total} tokens, too few for one block of {block_size}; "
                "give more text or a smaller --train.max_seq_length"
            )

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, block: int) -> np.ndarray:
        """Token ids of a block, int64, shape (block_size + 1,)."""
        domain, first = self._locate(block)
        return self._tokens[domain][first : first + self.block_size + 1].astype(np.int64)

    def domain_of(self, block: int) -> str:
        """Name of the domain a block comes from."""
        return self.domains[self._locate(block)[0]]

    def _locate(self, block: int) -> tuple[int, int]:
        if not 0 <= block < len(self):
            raise IndexError(f"block {block} of {len(self)}")
        domain = int(np.searchsorted(self._ends, block, side="right"))
        first_block = int(self._ends[domain - 1]) if domain else 0
        return domain, (block - first_block) * self.block_size
