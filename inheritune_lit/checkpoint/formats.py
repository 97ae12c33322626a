"""Safetensors files and those of ``torch.save``: where tensors are in one, and how it is written tensor by tensor.

Safetensors: 8 bytes little-endian header length, a JSON header ``{name: {dtype, shape, data_offsets}}``, then the data.
The header is checked, so that a damaged or hostile file is refused before any tensor is used. ``torch.save`` writes an
uncompressed zip archive: the pickled state dict, a record for every storage, and the directory at the end.

Both writers take ``chunks_of``, which gives the contiguous pieces whose bytes, one after the other, are the named
tensor, so that memory is bounded by a piece. It is called by several threads at once, each with another name.
"""

import errno
import json
import os
import struct
import zipfile
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import accumulate, pairwise
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch

from inheritune_lit.checkpoint.tensors import TensorSpec
from inheritune_lit.errors import UserError
from inheritune_lit.io.reading import open_regular, parse_json

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
FLOATS = "quantised weights are not supported, give the floating-point checkpoint"
MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library itself
ZIP_HEADER = struct.Struct("<26xHH")  # of a zip record, without the name and the extra field, whose lengths it ends in


@dataclass(frozen=True)
class TensorEntry(TensorSpec):
    """One tensor of a file, and where its bytes begin, counted from the start of the file."""

    begin: int

    @property
    def end(self) -> int:
        return self.begin + self.nbytes


def read_header(path: Path) -> dict[str, TensorEntry]:
    """The tensors of a safetensors file in the order of their bytes; a truncated or damaged one is a ``UserError``."""
    size = path.stat().st_size
    with open_regular(path) as file:
        expected = 8 + header_length(file.read(8), path)
        entries = parse_header(file.read(expected - 8), path) if expected <= size else {}
    expected = max((entry.end for entry in entries.values()), default=expected)
    if size < expected:
        raise UserError(f"{path} is truncated: {size:,} of {expected:,} bytes; get it again")
    if size > expected:
        raise UserError(f"{path} has {size - expected:,} bytes behind its last tensor; get it again")
    return entries


def header_length(prefix: bytes, path: object) -> int:
    """Length in bytes of the JSON header, from the first 8 bytes of a file; others than safetensors are refused."""
    if len(prefix) < 8:
        raise UserError(f"{path} is truncated: {len(prefix)} bytes, too short for a safetensors file; get it again")
    (length,) = struct.unpack("<Q", prefix)
    if not 2 <= length <= MAX_HEADER_BYTES:
        raise UserError(f"{path} is not a safetensors file: header length {length:,}; get it again")
    return length


def parse_header(header: bytes, path: object) -> dict[str, TensorEntry]:
    """Entries from the JSON header, in the order of their bytes, which have to fit shapes and dtypes."""
    raw = parse_json(header, Path(str(path)), "a safetensors header", "get it again")
    items = []
    for name, value in raw.items() if isinstance(raw, dict) else [("it", raw)]:
        match value:
            case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(begin), int(end)]}:
                items.append((begin, end, name, dtype, shape))
            case _ if name != "__metadata__":
                raise UserError(f"{path} has a damaged safetensors header ({name} is {value!r:.80}); get it again")
    entries: dict[str, TensorEntry] = {}
    position = 0
    for begin, end, name, dtype, shape in sorted(items, key=itemgetter(0, 1)):
        if dtype not in DTYPES:
            raise UserError(f"{path}: {name} has dtype {dtype:.20}, which is not supported; {FLOATS}")
        if not all(type(size) is int and size >= 0 for size in shape):
            raise UserError(f"{path}: {name} has shape {shape}; get the file again")
        entry = entries[name] = TensorEntry(tuple(shape), DTYPES[dtype], 8 + len(header) + position)
        if (begin, end) != (position, position + entry.nbytes):
            raise UserError(f"{path}: {name} claims bytes {begin}..{end}, which do not fit {shape}; get it again")
        position = end
    return entries


def build_header(specs: Mapping[str, TensorSpec]) -> tuple[bytes, list[int]]:
    """Prefix and JSON header of a file with these tensors in this order, and where the bytes of each begin in it."""
    # transformers refuses files that do not say "pt".
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    starts = [0, *accumulate(spec.nbytes for spec in specs.values())]
    for (name, spec), offsets in zip(specs.items(), pairwise(starts), strict=True):
        header[name] = {"dtype": DTYPE_NAMES[spec.dtype], "shape": spec.shape, "data_offsets": offsets}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    return struct.pack("<Q", len(encoded)) + encoded, [8 + len(encoded) + start for start in starts[:-1]]


_WORKERS = max(2, min(4, os.cpu_count() or 1))  # two overlap reading and writing; many wait for the file's lock

ChunksOf = Callable[[str], Iterable[torch.Tensor]]


def write_safetensors(path: Path, specs: dict[str, TensorSpec], chunks_of: ChunksOf) -> None:
    """Write a file with tensors in this order; a full disk is an ``OSError``."""
    header, offsets = build_header(specs)
    with open(path, "wb") as file:
        file.write(header)
        file.truncate(len(header) + sum(spec.nbytes for spec in specs.values()))
    _write_tensors(path, specs, offsets, chunks_of)


def write_torch_checkpoint(
    path: Path, specs: dict[str, TensorSpec], aliases: dict[str, str], chunks_of: ChunksOf
) -> None:
    """Write a state dict that ``torch.load(weights_only=True, mmap=True)`` reads, with ``aliases`` as for a tied head.

    ``torch.save`` lays out the file from tensors without storage, in the order of ``specs``; the bytes follow.
    """
    # Memory that nobody touches is never taken; with ``empty`` alone, torch's deterministic mode would fill it.
    state = {
        name: torch.empty(0, dtype=spec.dtype).set_(torch.UntypedStorage(spec.nbytes)).view(spec.shape)
        for name, spec in specs.items()
    }
    state |= {name: state[target] for name, target in aliases.items()}
    try:
        with torch.serialization.skip_data():
            torch.save(state, path)
    except RuntimeError as error:
        # Only sizes and names are written here: torch's stream fails when the file may not grow.
        raise OSError(errno.ENOSPC, "the file cannot grow to its size") from error
    offsets = []
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        begins = {Path(info.filename).name: info.header_offset for info in archive.infolist()}
        for number in range(len(specs)):  # torch numbers storages in the order in which the state dict names them
            file.seek(begins[str(number)])
            offsets.append(file.tell() + ZIP_HEADER.size + sum(ZIP_HEADER.unpack(file.read(ZIP_HEADER.size))))
    _write_tensors(path, specs, offsets, chunks_of)


def _write_tensors(path: Path, specs: dict[str, TensorSpec], offsets: list[int], chunks_of: ChunksOf) -> None:
    descriptor = os.open(path, os.O_RDWR)
    pool = ThreadPoolExecutor(_WORKERS)

    def write(name: str, begin: int) -> None:
        position, end = begin, begin + specs[name].nbytes
        for chunk in chunks_of(name):
            data = chunk.view(-1).view(torch.uint8).numpy().data
            if position + len(data) > end:
                raise ValueError(f"{name}: more than its {end - begin} bytes")
            while data:
                written = os.pwrite(descriptor, data, position)
                position, data = position + written, data[written:]
        if position != end:
            raise ValueError(f"{name}: {position - begin} bytes of {end - begin}")

    try:
        futures = [pool.submit(write, name, begin) for name, begin in zip(specs, offsets, strict=True)]
        for future in wait(futures, return_when=FIRST_EXCEPTION).done:
            future.result()
    finally:
        pool.shutdown(cancel_futures=True)
        os.close(descriptor)
