"""References from the hub: configuration first, then only the bytes that are inherited."""

import fnmatch
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inheritune_lit.checkpoint.byte_ranges import RangedFile, fetch_tensors, range_url
from inheritune_lit.checkpoint.folder import HF_CONFIG, TOKENIZER_FILES
from inheritune_lit.checkpoint.torch_files import open_torch_file
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
from inheritune_lit.io.hub_errors import explain_hub_errors

logger = logging.getLogger(__name__)

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
    _fetched: dict[Path, tuple[str, int]] = field(default_factory=dict)

    def download(self, needed: set[str], rename: Callable[[Iterable[str]], Callable[[str], str]]) -> Weights:
        """Fetch the weights that hold ``needed``; what an interrupted call has fetched is kept.

        Args:
            needed: full Hugging Face names of tensors.
            rename: makes, from all stored names, the function from a stored name to the full one.

        Raises:
            UserError: no weights in a supported format, or the connection failed.
        """
        with explain_hub_errors(self.name):
            for index_file, single, format_name in (
                (SAFETENSORS_INDEX, SAFETENSORS, "safetensors"),
                (BIN_INDEX, BIN, "bin"),
            ):
                if index_file in self.files or single in self.files:
                    return open_files(self._fetch(index_file, single, needed, rename), format_name)
            raise UserError(f"{self.name} has no {SAFETENSORS} or {BIN}, sharded or not; give another --ref")

    def record(self, weights: Weights) -> list[dict[str, Any]]:
        """The files behind the weights for the manifest, with the hub's hashes."""
        records = []
        for path in weights.files:
            file, fetched = self._fetched[path]
            size, sha256 = self.files[file]
            records.append({"path": file, "bytes": size, "sha256": sha256, "fetched_bytes": fetched})
        return records

    def _fetch(
        self, index_file: str, single: str, needed: set[str], rename: Callable[[Iterable[str]], Callable[[str], str]]
    ) -> list[Path]:
        """Local files that hold the needed tensors, of the shards or of the single file."""
        full: Callable[[str], str] | None = None
        shards, every = [single], {single}
        if index_file in self.files:
            index = read_index(self.folder / index_file)
            full, every = rename(index), set(index.values())
            shards = sorted({file for name, file in index.items() if full(name) in needed})
        plans: dict[str, RangedFile | None] = {}
        for file in shards:
            remote = plans[file] = None if self._cached(file) else self._open(file)
            if remote is None:
                continue
            full = full or rename(remote.entries)
            remote.choose(name for name in remote.entries if full(name) in needed)
            if remote.chosen_bytes > _RANGED_BELOW * remote.size:
                plans[file] = None
        self._announce(sum(plan.chosen_bytes if plan else self._size(file) for file, plan in plans.items()), every)
        for file, plan in plans.items():
            path = fetch_tensors(plan, self._parts_folder()) if plan else self._whole(file)
            self._fetched[path] = file, plan.chosen_bytes if plan else self._size(file)
        return list(self._fetched)

    def _open(self, file: str) -> RangedFile | None:
        url, size = range_url(self.name, file, self.revision), self._size(file)
        if file.endswith(".safetensors"):
            return RangedFile.open(url, file, size)
        return open_torch_file(url, file, size, self._parts_folder())

    def _announce(self, fetched: int, files: set[str]) -> None:
        total = sum(self._size(file) for file in files)
        logger.info("%s: %.2f GB of %.2f GB are needed", self.name, fetched / 1e9, total / 1e9)

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


def open_repository(name: str, revision: str | None = None, gated: bool = False) -> Repository:
    """Look up a repository and fetch its small files.

    Args:
        name: ``org/name``.
        revision: branch, tag or commit; the main branch when None.
        gated: it is known to ask for permission.

    Raises:
        UserError: no such repository or revision, no permission, or no connection and nothing in the cache.
    """
    from huggingface_hub import HfApi, hf_hub_download

    with explain_hub_errors(name, gated):
        info = HfApi().model_info(name, revision=revision, files_metadata=True)
        files = {
            sibling.rfilename: (sibling.size or 0, sibling.lfs.sha256 if sibling.lfs else None)
            for sibling in info.siblings or ()
        }
        if HF_CONFIG not in files:
            raise UserError(f"{name} has no {HF_CONFIG}: it is not a model of transformers; check --ref")
        wanted = [file for pattern in _SMALL_FILES for file in fnmatch.filter(files, pattern)]
        fetched = [hf_hub_download(name, file, revision=info.sha) for file in wanted]
    return Repository(name, str(info.sha), Path(fetched[0]).parent, files)
