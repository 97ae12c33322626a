"""Megatron's ``.bin``/``.idx`` pair: token ids back to back, and where each document begins.

The index is: nine magic bytes, version (uint64), token type (uint8), number of sequences and of document boundaries
(uint64 each), then the sequences' lengths (int32), their byte offsets in the ``.bin`` (int64), and the document
boundaries (int64, starting with 0). In what is written here a sequence is a document. Megatron cannot map an empty
``.bin``, so no files are written where there is no document.
"""

import struct
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np

from inheritune_lit.errors import UserError

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
_HEADER = struct.Struct("<9sQBQQ")
_CODE_OF = {"uint16": 8, "int32": 4}
_TYPE_OF = {code: name for name, code in _CODE_OF.items()}
_CHUNK = 1 << 20  # documents handled at a time, so that memory does not grow with the corpus


def bin_path(prefix: Path) -> Path:
    """Returns the file of token ids; domains may have dots in their names."""
    return prefix.with_name(prefix.name + ".bin")


def idx_path(prefix: Path) -> Path:
    """Returns the index."""
    return prefix.with_name(prefix.name + ".idx")


def sidecar_path(prefix: Path, name: str) -> Path:
    """Returns the file of a number per document beside a shard's tokens: "sample" (8 bytes each) or "hash" (16)."""
    return prefix.with_name(f"{prefix.name}.{name}")


class DocumentWriter:
    """Appends documents to ``prefix.bin``; ``close`` writes ``prefix.idx``.

    Args:
        prefix: path without extension, in a folder that exists.
        dtype: "uint16" or "int32".

    Attributes:
        tokens: tokens written so far.
    """

    def __init__(self, prefix: Path, dtype: str) -> None:
        self.prefix, self.dtype = prefix, np.dtype(dtype)
        self._bin = bin_path(prefix).open("wb")
        self._lengths = array("i")  # four bytes per document: a list of integers takes nine times as much
        self.tokens = 0

    @property
    def documents(self) -> int:
        """Documents written so far."""
        return len(self._lengths)

    def __enter__(self) -> "DocumentWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def add(self, ids: Sequence[int]) -> None:
        """Appends one document's token ids."""
        self.add_packed(np.asarray(ids, dtype=self.dtype).tobytes())

    def add_packed(self, ids: bytes) -> None:
        """Appends one document's token ids, given as bytes of the writer's dtype."""
        self._bin.write(ids)
        length = len(ids) // self.dtype.itemsize
        self._lengths.append(length)
        self.tokens += length

    def close(self) -> None:
        """Finishes both files."""
        self._bin.close()
        write_index(self.prefix, self.dtype.name, [np.asarray(self._lengths, dtype=np.int32)], self.documents)


def write_index(prefix: Path, dtype: str, lengths: Iterable[np.ndarray], documents: int) -> None:
    """Writes ``prefix.idx`` in memory that does not depend on the number of documents.

    Args:
        prefix: path without extension.
        dtype: "uint16" or "int32".
        lengths: the documents' lengths in tokens, int32, in any number of arrays.
        documents: how many there are in all.
    """
    itemsize = np.dtype(dtype).itemsize
    with idx_path(prefix).open("w+b") as index:
        index.write(_HEADER.pack(MAGIC, VERSION, _CODE_OF[dtype], documents, documents + 1))
        for some in lengths:
            index.write(some.astype(np.int32, copy=False).tobytes())
        position = 0
        for first in range(0, documents, _CHUNK):
            index.seek(_HEADER.size + 4 * first)
            some = np.frombuffer(index.read(4 * min(_CHUNK, documents - first)), dtype=np.int32)
            ends = position + np.cumsum(some * np.int64(itemsize))
            index.seek(0, 2)
            index.write(np.concatenate([[position], ends[:-1]]).astype(np.int64).tobytes())
            position = int(ends[-1])
        for first in range(0, documents + 1, _CHUNK):
            index.write(np.arange(first, min(first + _CHUNK, documents + 1), dtype=np.int64).tobytes())


def read_lengths(prefix: Path, first: int, count: int) -> np.ndarray:
    """Returns the lengths of some sequences from an index, int32, shape (count,)."""
    with idx_path(prefix).open("rb") as index:
        index.seek(_HEADER.size + 4 * first)
        return np.frombuffer(index.read(4 * count), dtype=np.int32)


def open_documents(prefix: Path) -> tuple[np.ndarray, np.ndarray]:
    """Maps a pair of files into memory, ours or Megatron's own.

    Returns:
        All token ids, shape (tokens,), and the documents' lengths in tokens, shape (documents,).

    Raises:
        UserError: a file is missing, damaged or truncated.
    """
    for path in (idx_path(prefix), bin_path(prefix)):
        if not path.is_file():
            raise UserError(f"{path} is missing; run `inheritune prepare` again")
    with idx_path(prefix).open("rb") as index:
        dtype, lengths = _read_index(index, idx_path(prefix))
    size, expected = bin_path(prefix).stat().st_size, int(lengths.sum(dtype=np.int64)) * dtype.itemsize
    if size != expected:
        raise UserError(f"{bin_path(prefix)} has {size} bytes instead of {expected}; run `inheritune prepare` again")
    if expected == 0:
        return np.zeros(0, dtype=dtype), lengths
    return np.memmap(bin_path(prefix), dtype=dtype, mode="r"), lengths


def _read_index(index: BinaryIO, path: Path) -> tuple[np.dtype, np.ndarray]:
    """Returns token type and documents' lengths."""
    header = index.read(_HEADER.size)
    if len(header) < _HEADER.size or not header.startswith(MAGIC):
        raise UserError(f"{path} is not a Megatron index; run `inheritune prepare` again")
    _, version, code, sequences, boundaries = _HEADER.unpack(header)
    if version != VERSION or code not in _TYPE_OF:
        raise UserError(f"{path} has version {version} and token type {code}; expected 1 and 8 or 4")
    size, expected = path.stat().st_size, _HEADER.size + sequences * (4 + 8) + boundaries * 8
    if size != expected:
        raise UserError(f"{path} has {size} bytes instead of {expected}; run `inheritune prepare` again")
    lengths = np.fromfile(index, dtype=np.int32, count=sequences)
    if boundaries == sequences + 1:
        return np.dtype(_TYPE_OF[code]), lengths
    # Megatron's tools may write a document as several sequences.
    index.seek(8 * sequences, 1)
    starts = np.fromfile(index, dtype=np.int64, count=boundaries)
    ends = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])[starts]
    return np.dtype(_TYPE_OF[code]), np.diff(ends).astype(np.int32)
