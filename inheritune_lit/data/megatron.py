"""Megatron's ``.bin``/``.idx`` pair: token ids back to back, and where each document begins.

The index is: nine magic bytes, version (uint64), token type (uint8), number of sequences and of document boundaries
(uint64 each), then the sequences' lengths (int32), their byte offsets in the ``.bin`` (int64), and the document
boundaries (int64, starting with 0). Here a sequence is a document.
"""

import struct
from array import array
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy as np

from inheritune_lit.errors import UserError

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
_HEADER = struct.Struct("<9sQBQQ")
_CODE_OF = {"uint16": 8, "int32": 4}
_TYPE_OF = {code: name for name, code in _CODE_OF.items()}


class DocumentWriter:
    """Append documents to ``prefix.bin``; ``close`` writes ``prefix.idx``.

    Args:
        prefix: path without extension, in a folder that exists.
        dtype: "uint16" or "int32".

    Attributes:
        tokens: tokens written so far.
    """

    def __init__(self, prefix: Path, dtype: str) -> None:
        self.prefix, self.dtype = prefix, np.dtype(dtype)
        self._bin = prefix.with_name(prefix.name + ".bin").open("wb")
        self._lengths = array("i")  # four bytes a document: a list of integers takes nine times as much
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
        """Append one document's token ids."""
        self._bin.write(np.asarray(ids, dtype=self.dtype).tobytes())
        self._lengths.append(len(ids))
        self.tokens += len(ids)

    def close(self) -> None:
        """Finish both files."""
        self._bin.close()
        lengths = np.asarray(self._lengths, dtype=np.int32)
        pointers = np.zeros(len(lengths), dtype=np.int64)
        np.cumsum(lengths[:-1] * np.int64(self.dtype.itemsize), out=pointers[1:])
        boundaries = np.arange(len(lengths) + 1, dtype=np.int64)
        with self.prefix.with_name(self.prefix.name + ".idx").open("wb") as index:
            index.write(_HEADER.pack(MAGIC, VERSION, _CODE_OF[self.dtype.name], len(lengths), len(boundaries)))
            for array in (lengths, pointers, boundaries):
                index.write(array.tobytes())


def open_documents(prefix: Path) -> tuple[np.ndarray, np.ndarray]:
    """Map a pair of files into memory.

    Returns:
        All token ids, shape (tokens,), and the documents' lengths in tokens, shape (documents,).

    Raises:
        UserError: a file is missing, damaged or truncated.
    """
    index_path, bin_path = prefix.with_name(prefix.name + ".idx"), prefix.with_name(prefix.name + ".bin")
    for path in (index_path, bin_path):
        if not path.is_file():
            raise UserError(f"{path} is missing; run `inheritune prepare` again")
    with index_path.open("rb") as index:
        header = index.read(_HEADER.size)
        if len(header) < _HEADER.size or not header.startswith(MAGIC):
            raise UserError(f"{index_path} is no Megatron index; run `inheritune prepare` again")
        _, version, code, sequences, boundaries = _HEADER.unpack(header)
        if version != VERSION or code not in _TYPE_OF:
            raise UserError(f"{index_path} has version {version} and token type {code}; expected 1 and 8 or 4")
        expected = _HEADER.size + sequences * (4 + 8) + boundaries * 8
        if index_path.stat().st_size != expected:
            raise UserError(
                f"{index_path} has {index_path.stat().st_size} bytes instead of {expected}; "
                "run `inheritune prepare` again"
            )
        lengths = np.fromfile(index, dtype=np.int32, count=sequences)
    dtype = np.dtype(_TYPE_OF[code])
    expected = int(lengths.sum(dtype=np.int64)) * dtype.itemsize
    if bin_path.stat().st_size != expected:
        raise UserError(
            f"{bin_path} has {bin_path.stat().st_size} bytes instead of {expected}; run `inheritune prepare` again"
        )
    if expected == 0:
        return np.zeros(0, dtype=dtype), lengths
    return np.memmap(bin_path, dtype=dtype, mode="r"), lengths
