"""Safetensors files read by their header, so that a damaged or hostile one is refused before any tensor is used.

Format: 8 bytes little-endian header length, a JSON header ``{name: {dtype, shape, data_offsets}}``, then the data.
"""

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path

import torch

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


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a file: where its bytes are, counted from the start of the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


def read_header(path: Path) -> dict[str, TensorEntry]:
    """Read and check the header of a safetensors file.

    Returns:
        The file's tensors in the order of their bytes.

    Raises:
        UserError: the file is truncated, is not safetensors, or its header contradicts itself.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        prefix = file.read(8)
        header_bytes = header_length(prefix, path)
        if 8 + header_bytes > size:
            raise UserError(
                f"{path} is truncated: its header needs {8 + header_bytes:,} bytes, the file has {size:,}; get it again"
            )
        entries = parse_header(file.read(header_bytes), path)
    expected = max((entry.end for entry in entries.values()), default=8 + header_bytes)
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
    """Turn the JSON header into entries, in the order of their bytes.

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
        dtype = DTYPES.get(dtype_name)
        if dtype is None:
            raise UserError(f"{path}: {name} has dtype {dtype_name}, which is not supported; use a float checkpoint")
        if not all(isinstance(size, int) and size >= 0 for size in shape):
            raise UserError(f"{path}: {name} has shape {list(shape)}; get the file again")
        if begin != position or end - begin != math.prod(shape) * dtype.itemsize:
            raise UserError(
                f"{path}: {name} claims bytes {begin}..{end}, which do not fit its shape {list(shape)};"
                f" get the file again"
            )
        position = end
        entries[name] = TensorEntry(dtype, shape, 8 + len(header) + begin, 8 + len(header) + end)
    return entries


def build_header(specs: dict[str, tuple[torch.dtype, tuple[int, ...]]], metadata: dict[str, str]) -> bytes:
    """Prefix and JSON header of a file that holds ``specs`` in this order, padded to 8 bytes."""
    header: dict[str, object] = {"__metadata__": metadata}
    position = 0
    for name, (dtype, shape) in specs.items():
        end = position + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": DTYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [position, end]}
        position = end
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    return struct.pack("<Q", len(encoded)) + encoded
