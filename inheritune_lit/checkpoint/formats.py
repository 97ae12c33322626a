"""Where tensors are in a safetensors file and in one of ``torch.save``, without a look at the tensors themselves.

Safetensors: 8 bytes little-endian header length, a JSON header ``{name: {dtype, shape, data_offsets}}``, then the data.
The header is checked, so that a damaged or hostile file is refused before any tensor is used. ``torch.save`` writes an
uncompressed zip archive: the pickled state dict, a record for every storage, and the directory at the end.
"""

import json
import struct
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import torch

from inheritune_lit.checkpoint.tensors import TensorSpec
from inheritune_lit.errors import UserError

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
MAX_HEADER_BYTES = 100_000_000
"""The limit of the safetensors library itself."""
ZIP_HEADER = struct.Struct("<26xHH")
"""A record's header up to the lengths of name and extra field, which come before its bytes."""


@dataclass(frozen=True)
class TensorEntry(TensorSpec):
    """One tensor of a file: what it is, and where its bytes begin, counted from the start of the file."""

    begin: int

    @property
    def end(self) -> int:
        return self.begin + self.nbytes


def read_header(path: Path) -> dict[str, TensorEntry]:
    """The tensors of a safetensors file in the order of their bytes, from its header, which is checked.

    Raises:
        UserError: the file is truncated, is not safetensors, or its header contradicts itself.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        data_start = 8 + header_length(file.read(8), path)
        if data_start > size:
            raise UserError(
                f"{path} is truncated: its header needs {data_start:,} bytes, the file has {size:,}; get it again"
            )
        entries = parse_header(file.read(data_start - 8), path)
    expected = max((entry.end for entry in entries.values()), default=data_start)
    if size < expected:
        raise UserError(f"{path} is truncated: {size:,} of {expected:,} bytes; get it again")
    if size > expected:
        raise UserError(f"{path} has {size - expected:,} bytes behind its last tensor; get it again")
    return entries


def header_length(prefix: bytes, path: object) -> int:
    """Length in bytes of the JSON header, from the first 8 bytes of a file.

    Raises:
        UserError: this is not a safetensors file.
    """
    if len(prefix) < 8:
        raise UserError(f"{path} is truncated: {len(prefix)} bytes, too short for a safetensors file; get it again")
    (length,) = struct.unpack("<Q", prefix)
    if not 2 <= length <= MAX_HEADER_BYTES:
        raise UserError(f"{path} is not a safetensors file: header length {length:,}; get it again")
    return length


def parse_header(header: bytes, path: object) -> dict[str, TensorEntry]:
    """Entries from the JSON header, in the order of their bytes.

    Raises:
        UserError: the header is not JSON of the format, or names bytes that do not fit shape and dtype.
    """
    try:
        raw = json.loads(header)
        items = [
            (name, value["dtype"], tuple(value["shape"]), *value["data_offsets"])
            for name, value in raw.items()
            if name != "__metadata__"
        ]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path} has a damaged safetensors header ({type(error).__name__}); get it again") from error
    entries: dict[str, TensorEntry] = {}
    position = 0
    for name, dtype_name, shape, begin, end in sorted(items, key=lambda item: (item[3], item[4])):
        if dtype_name not in DTYPES:
            raise UserError(f"{path}: {name} has dtype {dtype_name}, which is not supported; use a float checkpoint")
        if not all(isinstance(size, int) and size >= 0 for size in shape):
            raise UserError(f"{path}: {name} has shape {list(shape)}; get the file again")
        entry = entries[name] = TensorEntry(shape, DTYPES[dtype_name], 8 + len(header) + position)
        if (begin, end) != (position, position + entry.nbytes):
            raise UserError(
                f"{path}: {name} claims bytes {begin}..{end}, which do not fit its shape {list(shape)};"
                f" get the file again"
            )
        position = end
    return entries


def build_header(specs: dict[str, TensorSpec]) -> tuple[bytes, list[int]]:
    """Prefix and JSON header of a file with these tensors in this order, and where the bytes of each begin in it."""
    # transformers refuses files that do not say "pt".
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    starts = [0, *accumulate(spec.nbytes for spec in specs.values())]
    for (name, spec), offsets in zip(specs.items(), pairwise(starts), strict=True):
        header[name] = {"dtype": DTYPE_NAMES[spec.dtype], "shape": spec.shape, "data_offsets": offsets}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    return struct.pack("<Q", len(encoded)) + encoded, [8 + len(encoded) + start for start in starts[:-1]]


def zip_header_bytes(header: bytes) -> int:
    """How many bytes a record's header takes, from its first ``ZIP_HEADER.size`` bytes."""
    return ZIP_HEADER.size + sum(ZIP_HEADER.unpack(header))
