"""References from the hub: configuration first, then only the bytes that are inherited."""

import fnmatch
import logging
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import huggingface_hub

from inheritune_lit.checkpoint.folder import GENERATION_CONFIG, HF_CONFIG, TOKENIZER_FILES, check_no_adapter
from inheritune_lit.checkpoint.remote_files import RemoteFile, fetch_tensors, open_safetensors, open_torch_file
from inheritune_lit.checkpoint.weights import BIN, HF_FORMATS, SAFETENSORS, Weights, open_files, read_index
from inheritune_lit.errors import UserError
from inheritune_lit.io.hub_errors import cannot_download, explain_hub_errors, is_unreachable
from inheritune_lit.io.manifest import sha256_file
from inheritune_lit.io.reading import read_text

logger = logging.getLogger(__name__)

Rename = Callable[[Iterable[str]], Callable[[str], str]]  # from all stored names, the function to full ones

_SMALL_FILES = (HF_CONFIG, GENERATION_CONFIG, *TOKENIZER_FILES, *(index for index, _ in HF_FORMATS.values()))
_ABSENT = "it is not in the hub's cache"
_PATIENCE = 5.0  # seconds to wait for the hub's answer before its cache is taken
_RANGED_BELOW = 0.9  # a file of which a larger share is needed is downloaded whole, into the hub's own cache


@dataclass
class Repository:
    """A repository of the hub at one commit."""

    name: str  # ``org/name``
    revision: str  # the commit
    folder: Path  # its configuration and tokenizer, in the hub's cache
    files: dict[str, tuple[int, str | None]]  # name -> bytes, and the SHA-256 that the hub states, None for small files
    offline: Exception | None = None  # why only what is in the hub's cache can be had; None where the hub answers
    _fetched: dict[Path, tuple[str, int]] = field(default_factory=dict)

    def download(self, needed: set[str], rename: Rename) -> Weights:
        """Fetch weights of these full names, keeping what a stopped call fetched; none to be had is a ``UserError``."""
        with explain_hub_errors(self.name):
            for format_name, (index_file, single) in HF_FORMATS.items():
                if index_file in self.files or single in self.files:
                    return open_files(self._fetch(index_file, single, needed, rename), format_name)
            if self.offline:
                raise cannot_download(f"the weights of {self.name}", self.offline, _ABSENT)
            raise UserError(f"{self.name} has no {SAFETENSORS} or {BIN}, sharded or not; give another --ref")

    def record(self, weights: Weights) -> list[dict[str, Any]]:
        """The files behind the weights for the manifest, with the hub's hashes."""
        return [
            {"path": file, "bytes": self.files[file][0], "sha256": self.files[file][1], "fetched_bytes": fetched}
            for file, fetched in map(self._fetched.__getitem__, weights.files)
        ]

    def _fetch(self, index_file: str, single: str, needed: set[str], rename: Rename) -> Iterable[Path]:
        """Local files that hold the needed tensors, of the shards or of the single file."""
        full: Callable[[str], str] | None = None
        shards, every = [single], {single}
        if single not in self.files:  # transformers prefers the single file too
            index = read_index(self.folder / index_file)
            full, every = rename(index), set(index.values())
            shards = sorted({file for name, file in index.items() if full(name) in needed})
        plans: dict[str, RemoteFile | None] = {}
        for file in shards:
            cached = isinstance(huggingface_hub.try_to_load_from_cache(self.name, file, revision=self.revision), str)
            if not cached and self.offline:
                raise cannot_download(f"{file} of {self.name}", self.offline, _ABSENT)
            remote = plans[file] = None if cached else self._open(file)
            if remote:
                full = full or rename(remote.entries)
                remote.choose(name for name in remote.entries if full(name) in needed)
                plans[file] = remote if remote.chosen_bytes <= _RANGED_BELOW * remote.size else None
        sizes = {file: plan.chosen_bytes if plan else self._size(file) for file, plan in plans.items()}
        total = sum(self._size(file) for file in every if not self.offline or file in self.files)
        logger.info("%s: %.2f GB of %.2f GB are needed", self.name, sum(sizes.values()) / 1e9, total / 1e9)
        for file, plan in plans.items():
            if plan:
                path = fetch_tensors(plan, self._parts_folder)
            else:
                path = Path(huggingface_hub.hf_hub_download(self.name, file, revision=self.revision))
            self._fetched[path] = file, sizes[file]
        return self._fetched

    def _open(self, file: str) -> RemoteFile | None:
        url, size = huggingface_hub.hf_hub_url(self.name, file, revision=self.revision), self._size(file)
        if file.endswith(".safetensors"):
            return open_safetensors(url, file, size)
        return open_torch_file(url, file, size, self._parts_folder)

    def _size(self, file: str) -> int:
        if file not in self.files:
            raise UserError(f"{self.name}: the index names {file}, which the repository does not have")
        return self.files[file][0]

    @property
    def _parts_folder(self) -> Path:
        return huggingface_hub.cached_assets_path("inheritune", self.name, self.revision)


def open_repository(name: str, revision: str | None = None, gated: bool = False) -> Repository:
    """Look up ``org/name`` and fetch its small files; its cache serves where the hub does not answer.

    ``revision`` is a branch, tag or commit, the main branch when None; what is not to be had is a ``UserError``.
    """
    with explain_hub_errors(name, gated):
        try:
            api = huggingface_hub.HfApi()
            info = api.model_info(name, revision=revision, files_metadata=True, timeout=_PATIENCE)
        except Exception as error:
            if not is_unreachable(error):
                raise
            return _cached_repository(name, revision or "main", error)
        files = {
            sibling.rfilename: (sibling.size or 0, sibling.lfs.sha256 if sibling.lfs else None)
            for sibling in info.siblings or ()
        }
        check_no_adapter(name, files)
        if HF_CONFIG not in files:
            raise UserError(f"{name} has no {HF_CONFIG}: it is not a model of transformers; check --ref")
        wanted = [file for pattern in _SMALL_FILES for file in fnmatch.filter(files, pattern)]
        if revision != info.sha:  # by its name too, so that the cache knows the name
            huggingface_hub.hf_hub_download(name, HF_CONFIG, revision=revision)
        fetched = [huggingface_hub.hf_hub_download(name, file, revision=info.sha) for file in wanted]
    return Repository(name, str(info.sha), Path(fetched[0]).parent, files)


def _cached_repository(name: str, revision: str, error: Exception) -> Repository:
    """What the hub's cache holds of a repository, where the hub cannot be reached for the reason ``error``."""
    root = Path(huggingface_hub.constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"
    commit, ref = revision, root / "refs" / revision
    if ".." not in Path(revision).parts and ref.is_file():
        commit = read_text(ref, "a reference of the hub's cache", "remove it", 4096).strip()
    folder = root / "snapshots" / commit
    if not _COMMIT.fullmatch(commit) or not folder.is_dir():
        gone = f"{ref} names {commit!r}, whose files are gone" if commit != revision else _ABSENT
        raise cannot_download(name if revision == "main" else f"{name}@{revision}", error, gone)
    paths = [path for path in folder.rglob("*") if path.is_file()]
    files = {path.relative_to(folder).as_posix(): (path.stat().st_size, cached_sha256(path)) for path in paths}
    if HF_CONFIG not in files:
        raise cannot_download(f"{HF_CONFIG} of {name}", error, _ABSENT)
    logger.info("%s: the hub cannot be reached, its cache is used (commit %s)", name, commit)
    return Repository(name, commit, folder, files, error)


_COMMIT = re.compile(r"[0-9a-f]{40}")


def cached_sha256(path: Path) -> str | None:
    """The SHA-256 of a large file of the hub's cache, which names its blobs by it; None for other files."""
    blob = path.resolve()
    return blob.name if blob.parent.name == "blobs" and re.fullmatch(r"[0-9a-f]{64}", blob.name) else None


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, which is read unless the hub's cache states it."""
    return cached_sha256(path) or sha256_file(path)


def cached_identity(folder: Path) -> tuple[str, str, str] | None:
    """Maker, name and commit of a repository whose files are a folder of the hub's cache; None for other folders."""
    snapshot = folder.resolve()
    root = re.fullmatch(r"models--(?:(.+?)--)?(.+)", snapshot.parent.parent.name)
    if snapshot.parent.name != "snapshots" or root is None or not _COMMIT.fullmatch(snapshot.name):
        return None
    return root[1] or "local", root[2], snapshot.name
