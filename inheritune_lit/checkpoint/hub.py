"""References from the hub: configuration first, then only the bytes that are inherited."""

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inheritune_lit.checkpoint.folder import HF_CONFIG, TOKENIZER_FILES
from inheritune_lit.checkpoint.hub_errors import explain_hub_errors
from inheritune_lit.checkpoint.ranged import RangedFile, fetch_tensors, range_url
from inheritune_lit.checkpoint.weights import (
    BIN,
    BIN_INDEX,
    SAFETENSORS,
    SAFETENSORS_INDEX,
    Weights,
    open_files,
    read_index,
)
from inheritune_lit.errors import UserError

_SMALL_FILES = (HF_CONFIG, "generation_config.json", *TOKENIZER_FILES, SAFETENSORS_INDEX, BIN_INDEX)
_RANGED_BELOW = 0.9
"""A file of which a larger share is needed is downloaded whole, into the hub's own cache."""


@dataclass
class Repository:
    """A repository of the hub at one commit.

    Attributes:
        name: ``org/name``.
        revision: the commit.
        folder: its configuration and tokenizer, in the hub's cache.
        files: name -> (bytes, SHA-256 as the hub states it, None for small files).
    """

    name: str
    revision: str
    folder: Path
    files: dict[str, tuple[int, str | None]]

    def download(self, needed: set[str], rename: Callable[[Iterable[str]], Callable[[str], str]]) -> Weights:
        """Fetch the weights that hold ``needed``; what an interrupted call has fetched is kept.

        Args:
            needed: full Hugging Face names of tensors.
            rename: makes, from all stored names, the function from a stored name to the full one.

        Raises:
            UserError: no weights in a supported format, or the connection failed.
        """
        with explain_hub_errors(self.name):
            if SAFETENSORS_INDEX in self.files or SAFETENSORS in self.files:
                return self._download_safetensors(needed, rename)
            if BIN_INDEX in self.files:
                index = read_index(self.folder / BIN_INDEX)
                full, every = rename(index), set(index.values())
                shards = sorted({file for name, file in index.items() if full(name) in needed})
            elif BIN in self.files:
                shards = [BIN]
                every = {BIN}
            else:
                raise UserError(f"{self.name} has no {SAFETENSORS} or {BIN}, sharded or not; give another --ref")
            self._announce(sum(self._size(file) for file in shards), every)
            return open_files([self._whole(file) for file in shards], "bin")

    def record(self, weights: Weights) -> list[dict[str, Any]]:
        """The files behind the weights for the manifest, with the hub's hashes."""
        records = []
        for path in weights.files:
            part_of = path.stem.partition("~")[0] + path.suffix
            source = part_of if part_of in self.files else path.name
            size, sha256 = self.files.get(source, (path.stat().st_size, None))
            records.append({"path": source, "bytes": size, "sha256": sha256, "fetched_bytes": path.stat().st_size})
        return records

    def _download_safetensors(
        self, needed: set[str], rename: Callable[[Iterable[str]], Callable[[str], str]]
    ) -> Weights:
        full: Callable[[str], str] | None = None
        shards, every = [SAFETENSORS], {SAFETENSORS}
        if SAFETENSORS_INDEX in self.files:
            index = read_index(self.folder / SAFETENSORS_INDEX)
            full, every = rename(index), set(index.values())
            shards = sorted({file for name, file in index.items() if full(name) in needed})
        plans: list[RangedFile] = []
        for file in shards:
            ranged = RangedFile.open(range_url(self.name, file, self.revision), file, self._size(file))
            full = full or rename(ranged.entries)
            ranged.choose(name for name in ranged.entries if full(name) in needed)
            plans.append(ranged)
        self._announce(sum(plan.chosen_bytes for plan in plans), every)
        files = []
        for plan in plans:
            cached = self._cached(plan.file)
            if cached or plan.chosen_bytes > _RANGED_BELOW * plan.size:
                files.append(cached or self._whole(plan.file))
            else:
                files.append(fetch_tensors(plan, self._parts_folder()))
        return open_files(files, "safetensors")

    def _announce(self, fetched: int, files: set[str]) -> None:
        total = sum(self._size(file) for file in files)
        print(f"{self.name}: {fetched / 1e9:.2f} GB of {total / 1e9:.2f} GB are needed", file=sys.stderr)

    def _size(self, file: str) -> int:
        if file not in self.files:
            raise UserError(f"{self.name}: the index names {file}, which the repository does not have")
        return self.files[file][0]

    def _cached(self, file: str) -> Path | None:
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(self.name, file, revision=self.revision)
        return Path(found) if isinstance(found, str) else None

    def _whole(self, file: str) -> Path:
        from huggingface_hub import hf_hub_download

        return Path(hf_hub_download(self.name, file, revision=self.revision))

    def _parts_folder(self) -> Path:
        from huggingface_hub import cached_assets_path

        return cached_assets_path("inheritune", self.name, self.revision)


def open_repository(name: str, gated: bool = False) -> Repository:
    """Look up a repository and fetch its small files.

    Args:
        name: ``org/name``.
        gated: it is known to ask for permission.

    Raises:
        UserError: no such repository, no permission, or no connection and nothing in the cache.
    """
    from huggingface_hub import HfApi, hf_hub_download

    with explain_hub_errors(name, gated):
        info = HfApi().model_info(name, files_metadata=True)
        files = {
            sibling.rfilename: (sibling.size or 0, sibling.lfs.sha256 if sibling.lfs else None)
            for sibling in info.siblings or ()
        }
        if HF_CONFIG not in files:
            raise UserError(f"{name} has no {HF_CONFIG}: it is no model of transformers; check --ref")
        fetched = [hf_hub_download(name, file, revision=info.sha) for file in _SMALL_FILES if file in files]
    return Repository(name, info.sha, Path(fetched[0]).parent, files)
