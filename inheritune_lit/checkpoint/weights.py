"""The tensors of a checkpoint folder by name, mapped from its files: nothing is read until it is used."""

import mmap
import re
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, BinaryIO

import torch

from inheritune_lit.checkpoint.folder import WEIGHTS, is_litgpt_folder
from inheritune_lit.checkpoint.formats import DTYPE_NAMES, FLOATS, MAX_HEADER_BYTES, read_header
from inheritune_lit.checkpoint.tensors import TensorSpec
from inheritune_lit.errors import UserError, first_line
from inheritune_lit.io.reading import open_regular
from inheritune_lit.io.records import read_record

SAFETENSORS, SAFETENSORS_INDEX = "model.safetensors", "model.safetensors.index.json"
BIN, BIN_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
HF_FORMATS = {"safetensors": (SAFETENSORS_INDEX, SAFETENSORS), "bin": (BIN_INDEX, BIN)}
"""Format -> the index of a sharded checkpoint and the file of one that is not, in the order of preference."""


@dataclass
class Weights:
    """Tensors of one or more files."""

    files: list[Path]  # in name order
    format: str  # "safetensors", "bin", "litgpt" or "gguf"
    specs: dict[str, TensorSpec]
    file_of: dict[str, Path]
    tied: list[tuple[str, str]] = field(default_factory=list)
    """Names that share their storage in the file, as pairs in name order, the later name first."""
    _name_in_file: dict[str, str] = field(default_factory=dict)
    _readers: dict[Path, Callable[[str], torch.Tensor]] = field(default_factory=dict)

    def tensor(self, name: str) -> torch.Tensor:
        """One tensor, backed by the file's pages: do not write to it."""
        path = self.file_of[name]
        reader = self._readers.get(path) or self._readers.setdefault(path, _reader(path))
        return reader(self._name_in_file.get(name, name))

    def renamed(self, rename: Callable[[str], str]) -> "Weights":
        """The same tensors under other names."""
        return replace(
            self,
            specs={rename(name): spec for name, spec in self.specs.items()},
            file_of={rename(name): path for name, path in self.file_of.items()},
            tied=[(rename(first), rename(second)) for first, second in self.tied],
            _name_in_file={rename(name): self._name_in_file.get(name, name) for name in self.specs},
        )

    def remapped(self) -> "Weights":
        """The same tensors over new mappings: pages read through the old ones leave memory together with them."""
        # Old files of torch.save cannot be mapped, and would be read again.
        return replace(self, _readers={path: read for path, read in self._readers.items() if path.suffix == ".bin"})


def open_weights(folder: Path) -> Weights:
    """Map a folder's weights; none, or files missing, truncated or contradicting their index, are a ``UserError``."""
    if is_litgpt_folder(folder) and (folder / WEIGHTS).is_file():
        return open_files([folder / WEIGHTS], "litgpt")
    for format_name, (index_file, single) in HF_FORMATS.items():
        if (folder / single).is_file():  # an index beside it is of an older save, which transformers does not read
            return open_files([folder / single], format_name)
        if (folder / index_file).is_file():
            index = read_index(folder / index_file)
            files = sorted(set(index.values()))
            if missing := [file for file in files if not (folder / file).is_file()]:
                raise UserError(f"{index_file} names {missing[0]}, which is missing in {folder}; get it again")
            weights = open_files([folder / file for file in files], format_name)
            for name, file in index.items():
                if weights.file_of.get(unwrapped(name)) != folder / file:
                    raise UserError(f"{index_file} puts {name} into {file}, which does not hold it; get both again")
            return weights
    names = f"{WEIGHTS}, {SAFETENSORS}, {BIN}"
    raise UserError(f"{folder} holds no weights: no {names} nor an index; give another folder, or get it again")


def open_files(files: Iterable[Path], format_name: str) -> Weights:
    """Map files that hold a part of the tensors each: safetensors by their suffix, or else of ``torch.save``.

    ``format_name`` is that of what they come from; a damaged file, or a tensor that two hold, is a ``UserError``.
    """
    weights = Weights(list(files), format_name, {}, {})
    for path in weights.files:
        if path.suffix == ".safetensors":
            header = read_header(path)
            specs: Mapping[str, TensorSpec] = {unwrapped(name): spec for name, spec in header.items()}
            if len(specs) < len(header):
                raise UserError(f"{path} holds a tensor twice, wrapped and as it is; save one model into it")
            weights._name_in_file |= {unwrapped(name): name for name in header if unwrapped(name) != name}
        else:
            state, first_at = load_torch_file(path), dict[int, str]()
            specs = {name: TensorSpec(tuple(tensor.shape), tensor.dtype) for name, tensor in state.items()}
            weights._readers[path] = state.__getitem__
            for name, tensor in state.items():
                if tensor.numel() and (other := first_at.setdefault(tensor.data_ptr(), name)) != name:
                    weights.tied.append((max(other, name), min(other, name)))
        for name in specs:
            if name in weights.specs:
                raise UserError(f"{name} is in both {weights.file_of[name]} and {path.name}; get the checkpoint again")
        weights.specs |= specs
        weights.file_of |= dict.fromkeys(specs, path)
    return weights


def _reader(path: Path) -> Callable[[str], torch.Tensor]:
    """What gives a file's tensors by name."""
    if path.suffix != ".safetensors":
        return load_torch_file(path).__getitem__
    entries = read_header(path)
    # Other than safetensors' own, a mapping for reading alone may be larger than memory.
    with open(path, "rb") as file:
        pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def tensor(name: str) -> torch.Tensor:
        entry = entries[name]
        if entry.nbytes == 0:
            return torch.empty(entry.shape, dtype=entry.dtype)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given buffer is not writable")
            raw = torch.frombuffer(pages, dtype=torch.uint8, count=entry.nbytes, offset=entry.begin)
        return raw.view(entry.dtype).view(entry.shape)

    return tensor


@dataclass(frozen=True)
class _Index:
    weight_map: dict[str, str]


def read_index(path: Path) -> dict[str, str]:
    """Which file holds which tensor, from a Hugging Face index; one that names files elsewhere is a ``UserError``."""
    files = read_record(path, _Index, "a weight index", "get it again", others=True).weight_map
    for file in files.values():
        if Path(file).name != file or file in (".", ".."):
            raise UserError(f"{path} names a file outside its folder: {file!r}; do not use this checkpoint")
    return files


def load_torch_file(path: Path, label: str | None = None) -> dict[str, torch.Tensor]:
    """Map a state dict of ``torch.save``, or the one under "model" in it; ``label`` stands for it in errors.

    Nothing but tensors and containers is unpickled, or read before it is used; other content is a ``UserError``.
    """
    label = label or str(path)
    with open_regular(path) as file:
        try:
            # Only the zip format of torch >= 1.6 can be mapped.
            if mappable := file.read(2) == b"PK":
                _check_archive(file)
            state: Any = torch.load(path, map_location="cpu", mmap=mappable, weights_only=True)
        except UnpicklingError as error:
            raise UserError(f"{label} holds Python objects and was not loaded; use safetensors") from error
        except Exception as error:  # torch and zipfile raise RuntimeError, EOFError, ... for damaged files
            raise UserError(f"{label} cannot be read ({first_line(error)}); get it again") from error
    state = state.get("model", state) if isinstance(state, dict) else state
    if not isinstance(state, dict):
        raise UserError(f"{label} holds a {type(state).__name__}, not a state dict; get it again")
    named: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        problem = _tensor_problem(tensor) if isinstance(name, str) else "its name is not text"
        if not problem and path.name == WEIGHTS and not tensor.is_floating_point():
            problem = f"it has dtype {tensor.dtype}, and {FLOATS}"
        if not problem and unwrapped(name) in named:
            problem = "it is there twice"
        if problem:
            raise UserError(f"{label}: {name!s:.80} can't be used: {problem}; get the file again")
        named[unwrapped(name)] = tensor.detach()  # parameters are saved with their wish for a gradient
    return named


def _check_archive(file: BinaryIO) -> None:
    """Raise a ``ValueError`` for compressed records, which torch would unpack: a few MB can stand for any number."""
    with zipfile.ZipFile(file) as archive:
        records = archive.infolist()
    if any(record.compress_type != zipfile.ZIP_STORED for record in records):
        raise ValueError("its records are compressed, which torch.save never does")
    if sum(record.file_size for record in records if "/data/" not in record.filename) > MAX_HEADER_BYTES:
        raise ValueError(f"names and shapes take more than {MAX_HEADER_BYTES:,} bytes")


def _tensor_problem(tensor: Any) -> str | None:
    """Why what a state dict holds is no plain tensor, None where it is."""
    if not isinstance(tensor, torch.Tensor):
        return f"it is a {type(tensor).__name__}, not a tensor"
    if tensor.is_quantized:
        return FLOATS
    if tensor.layout is not torch.strided or tensor.device.type != "cpu":
        return f"its layout is {tensor.layout} on {tensor.device}, not plain numbers"
    if tensor.dtype not in DTYPE_NAMES:
        return f"it has dtype {tensor.dtype}, which is not supported"
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return f"its shape {list(tensor.shape)} is more than it stores"
    return None


_WRAPPERS = re.compile(r"(?<![^.])(?:_orig_mod|_forward_module|_(?:fsdp|checkpoint)_wrapped_module|module)\.")


def unwrapped(name: str) -> str:
    """A tensor's name without what torch.compile, DDP, FSDP and Fabric put around a model that is saved as it is."""
    return _WRAPPERS.sub("", name)
