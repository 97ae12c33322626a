"""The tensors of a checkpoint folder by name, mapped from its files: nothing is read until it is used."""

import json
import mmap
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from inheritune_lit.checkpoint.folder import WEIGHTS, is_litgpt_folder
from inheritune_lit.checkpoint.safetensors_files import TensorEntry, read_header
from inheritune_lit.errors import UserError, first_line

SAFETENSORS, SAFETENSORS_INDEX = "model.safetensors", "model.safetensors.index.json"
BIN, BIN_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"


@dataclass(frozen=True)
class TensorSpec:
    """What a tensor is, without its values."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def numel(self) -> int:
        return torch.Size(self.shape).numel()

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize


@dataclass
class Weights:
    """Tensors of one or more files.

    Attributes:
        files: the files, in name order.
        format: "safetensors", "bin" or "litgpt".
        specs: every tensor's shape and dtype.
        file_of: the file of every tensor.
        tied: names that share their storage in the file, as pairs in name order, the later name first.
    """

    files: list[Path]
    format: str
    specs: dict[str, TensorSpec]
    file_of: dict[str, Path]
    tied: list[tuple[str, str]] = field(default_factory=list)
    _mapped: dict[str, torch.Tensor] = field(default_factory=dict)
    _entries: dict[str, TensorEntry] = field(default_factory=dict)
    _maps: dict[Path, mmap.mmap] = field(default_factory=dict)

    def tensor(self, name: str) -> torch.Tensor:
        """One tensor, backed by the file's pages (read-only: do not write to it)."""
        if name in self._mapped:
            return self._mapped[name]
        entry, path = self._entries[name], self.file_of[name]
        if path not in self._maps:
            with open(path, "rb") as file:
                self._maps[path] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if entry.end == entry.begin:
            return torch.empty(entry.shape, dtype=entry.dtype)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given buffer is not writable")
            raw = torch.frombuffer(
                self._maps[path], dtype=torch.uint8, count=entry.end - entry.begin, offset=entry.begin
            )
        return raw.view(entry.dtype).view(entry.shape)

    def renamed(self, rename: Callable[[str], str]) -> "Weights":
        """The same tensors under other names."""
        tables = ("specs", "file_of", "_mapped", "_entries")
        renamed: dict[str, Any] = {
            table: {rename(name): value for name, value in getattr(self, table).items()} for table in tables
        }
        return replace(self, **renamed, tied=[(rename(first), rename(second)) for first, second in self.tied], _maps={})

    def remapped(self) -> "Weights":
        """The same tensors over new mappings: pages read through the old ones leave memory together with them.

        ``torch.save`` files of Hugging Face folders keep their mapping: their tensors may have been renamed since.
        """
        if self.format == "litgpt":
            return _open_litgpt(self.files[0])
        return replace(self, _maps={})


def open_weights(folder: Path) -> Weights:
    """Find and map the weights of a Hugging Face or litgpt folder.

    Raises:
        UserError: there are none, or a file is missing, truncated or contradicts its index.
    """
    if not folder.is_dir():
        raise UserError(f"no folder at {folder}; give a checkpoint folder, a hub repository or a known name")
    if is_litgpt_folder(folder) and (folder / WEIGHTS).is_file():
        return _open_litgpt(folder / WEIGHTS)
    if (folder / SAFETENSORS_INDEX).is_file():
        return _open_safetensors(_shards(folder / SAFETENSORS_INDEX), read_index(folder / SAFETENSORS_INDEX))
    if (folder / SAFETENSORS).is_file():
        return _open_safetensors([folder / SAFETENSORS], None)
    if (folder / BIN_INDEX).is_file():
        return _open_bin(_shards(folder / BIN_INDEX), read_index(folder / BIN_INDEX))
    if (folder / BIN).is_file():
        return _open_bin([folder / BIN], None)
    raise UserError(
        f"{folder} holds no weights: no {WEIGHTS}, {SAFETENSORS}, {BIN} nor the index of a sharded one; give another "
        "folder, or get it again"
    )


def open_files(files: list[Path], format_name: str) -> Weights:
    """Map single files, each of which holds a part of the tensors.

    Args:
        files: the files, safetensors by their suffix or else of ``torch.save``.
        format_name: format of the files that these come from.

    Raises:
        UserError: a file is truncated or damaged.
    """
    first = _open_safetensors([file for file in files if file.suffix == ".safetensors"], None)
    second = _open_bin([file for file in files if file.suffix != ".safetensors"], None)
    return replace(
        second,
        files=files,
        format=format_name,
        specs=first.specs | second.specs,
        file_of=first.file_of | second.file_of,
        _entries=first._entries,
    )


def read_index(path: Path) -> dict[str, str]:
    """Which file holds which tensor, from a Hugging Face index file.

    Raises:
        UserError: the file is damaged, or names a file outside its folder.
    """
    try:
        weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        files = {str(name): str(file) for name, file in weight_map.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not a weight index ({type(error).__name__}: {error}); get it again") from error
    for file in files.values():
        if Path(file).name != file or file in (".", ".."):
            raise UserError(f"{path} names a file outside its folder: {file!r}; do not use this checkpoint")
    return files


def _shards(index_path: Path) -> list[Path]:
    shards = [index_path.parent / file for file in sorted(set(read_index(index_path).values()))]
    for shard in shards:
        if not shard.is_file():
            raise UserError(f"{index_path.name} names {shard.name}, which is missing in {shard.parent}; get it again")
    return shards


def _open_safetensors(files: list[Path], index: dict[str, str] | None) -> Weights:
    entries: dict[str, TensorEntry] = {}
    file_of: dict[str, Path] = {}
    for path in files:
        for name, entry in read_header(path).items():
            if name in entries:
                raise UserError(f"{name} is in both {file_of[name]} and {path.name}; get the checkpoint again")
            entries[name], file_of[name] = entry, path
    _check_index(index, file_of)
    specs = {name: TensorSpec(entry.shape, entry.dtype) for name, entry in entries.items()}
    return Weights(files, "safetensors", specs, file_of, _entries=entries)


def _check_index(index: dict[str, str] | None, file_of: dict[str, Path]) -> None:
    for name, file in (index or {}).items():
        if name not in file_of or file_of[name].name != file:
            raise UserError(f"the index puts {name} into {file}, which does not hold it; get the checkpoint again")


def _open_litgpt(path: Path) -> Weights:
    state = load_torch_file(path)
    return _from_state(state, [path], "litgpt", dict.fromkeys(state, path))


def _open_bin(files: list[Path], index: dict[str, str] | None) -> Weights:
    state: dict[str, torch.Tensor] = {}
    file_of: dict[str, Path] = {}
    for path in files:
        for name, tensor in load_torch_file(path).items():
            state[name], file_of[name] = tensor, path
    _check_index(index, file_of)
    return _from_state(state, files, "bin", file_of)


def load_torch_file(path: Path, label: str | None = None) -> dict[str, Any]:
    """Map a state dict written by ``torch.save``, or the one under "model" in it.

    Nothing is read until it is used, and nothing but tensors and containers is ever unpickled.

    Args:
        path: the file.
        label: what to call it in errors.

    Raises:
        UserError: the file is damaged, or holds Python objects other than tensors.
    """
    label = label or str(path)
    with open(path, "rb") as file:
        # Only the zip format of torch >= 1.6 can be mapped.
        mappable = file.read(2) == b"PK"
    try:
        state = torch.load(path, map_location="cpu", mmap=mappable, weights_only=True)
    except UnpicklingError as error:
        raise UserError(
            f"{label} holds Python objects other than tensors and was not loaded; use safetensors"
        ) from error
    except Exception as error:  # torch raises RuntimeError, EOFError, ... for damaged files
        raise UserError(f"{label} cannot be read ({first_line(error)}); get it again") from error
    if not isinstance(state, dict):
        raise UserError(f"{label} holds a {type(state).__name__}, not a state dict; get it again")
    return state.get("model", state)


def _from_state(
    state: dict[str, torch.Tensor], files: list[Path], format_name: str, file_of: dict[str, Path]
) -> Weights:
    first_at: dict[int, str] = {}
    tied = []
    for name, tensor in state.items():
        if not isinstance(tensor, torch.Tensor):
            raise UserError(f"{file_of[name]}: {name} is a {type(tensor).__name__}, not a tensor; get the file again")
        if tensor.numel() and (other := first_at.setdefault(tensor.data_ptr(), name)) != name:
            tied.append((max(other, name), min(other, name)))
    specs = {name: TensorSpec(tuple(tensor.shape), tensor.dtype) for name, tensor in state.items()}
    return Weights(files, format_name, specs, file_of, tied=tied, _mapped=state)
