"""Megatron's ``.bin``/``.idx`` pair: token ids back to back, and where each document begins.

The index is: nine magic bytes, version (uint64), token type (uint8), number of sequences and of document boundaries
(uint64 each), then the sequences' lengths (int32), their byte offsets in the ``.bin`` (int64), and the document
boundaries (int64, starting with 0). In what is written here a sequence is a document. Megatron cannot map an empty
``.bin``, so no files are written where there is no document.
"""

import struct
from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from inheritune_lit.data.manifest import Count
from inheritune_lit.errors import UserError

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
_HEADER = struct.Struct("<9sQBQQ")
_CODE_OF = {"uint16": 8, "int32": 4}
REMEDY = "restore the file, or make the data again with `inheritune prepare` and another --out_dir"
_TYPE_OF = {code: name for name, code in _CODE_OF.items()}
_CHUNK = 1 << 20  # documents handled at a time, so that memory does not grow with the corpus


def beside(prefix: Path, ending: str) -> Path:
    """Returns a file of a pair, "bin" or "idx", or one of a shard with a number per document: "sample" or "hash"."""
    return prefix.with_name(f"{prefix.name}.{ending}")  # domains may have dots in their names


class DocumentWriter(AbstractContextManager):
    """Appends documents to ``prefix.bin``, ``prefix.idx`` at the end; they wait for ``flush``, no file stays open."""

    def __init__(self, prefix: Path, dtype: str) -> None:
        self._prefix, self._dtype = prefix, np.dtype(dtype)
        self._waiting: defaultdict[str, bytearray] = defaultdict(bytearray)
        beside(prefix, "bin").write_bytes(b"")
        self._lengths = array("i")  # four bytes per document: a list of integers takes nine times as much

    def __exit__(self, *error: object) -> None:
        self.flush()
        lengths = np.asarray(self._lengths, dtype=np.int32)
        write_index(self._prefix, self._dtype.name, [lengths], len(lengths))

    def add(self, ids: Sequence[int] | bytes, **numbers: bytes) -> int:
        """Appends a document's ids (or bytes of them), and its numbers to files of their names; returns their count."""
        packed = ids if isinstance(ids, bytes) else np.asarray(ids, dtype=self._dtype).tobytes()
        for ending, content in {"bin": packed, **numbers}.items():
            self._waiting[ending] += content
        self._lengths.append(len(packed) // self._dtype.itemsize)
        return self._lengths[-1]

    def flush(self) -> None:
        """Writes what waits."""
        for ending, content in self._waiting.items():
            with beside(self._prefix, ending).open("ab") as file:
                file.write(content)
            content.clear()


def write_index(prefix: Path, dtype: str, lengths: Iterable[np.ndarray], documents: int) -> None:
    """Writes ``prefix.idx`` of documents' lengths (int32) in tokens of a dtype, in memory that does not grow."""
    position, itemsize = 0, np.dtype(dtype).itemsize
    with beside(prefix, "idx").open("w+b") as index:
        index.write(_HEADER.pack(MAGIC, VERSION, _CODE_OF[dtype], documents, documents + 1))
        for some in lengths:
            index.write(some.astype(np.int32, copy=False).tobytes())
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
    with beside(prefix, "idx").open("rb") as index:
        index.seek(_HEADER.size + 4 * first)
        return np.frombuffer(index.read(4 * count), dtype=np.int32)


@dataclass
class DocumentSpan:
    """Consecutive documents of a pair of files, all from the source with this name."""

    prefix: Path  # the files, <split>/<domain> without extension
    source: str
    before: Count  # what lies before them in the files
    size: Count
    keep: np.ndarray | None = None  # which of them, bool, shape (documents,); None for all

    @property
    def place(self) -> tuple[str, str]:
        """Split and domain."""
        return self.prefix.parent.name, self.prefix.name

    @cached_property
    def kept(self) -> Count:
        """What is kept of them."""
        if self.keep is None:
            return self.size
        return Count(int(self.keep.sum()), int(self.kept_lengths().sum(dtype=np.int64)))

    def lengths(self) -> np.ndarray:
        """Returns the documents' lengths in tokens, int32, shape (documents,)."""
        return read_lengths(self.prefix, self.before.documents, self.size.documents)

    def kept_lengths(self) -> np.ndarray:
        """Returns the lengths of the kept documents, int32."""
        return self.lengths() if self.keep is None else self.lengths()[self.keep]

    def kept_tokens(self) -> Iterator[tuple[int, int]]:
        """Yields first token and number of tokens of each run of kept documents."""
        if self.keep is None:
            yield self.before.tokens, self.size.tokens
            return
        starts = self.before.tokens + np.cumsum(np.append(0, self.lengths()), dtype=np.int64)
        edges = np.flatnonzero(np.diff(self.keep, prepend=False, append=False))
        for first, stop in starts[edges].reshape(-1, 2).tolist():
            yield first, stop - first


def consecutive_spans(counts: Iterable[tuple[Path, str, Count]]) -> Iterator[DocumentSpan]:
    """Yields spans that lie one behind the other in their files, from each one's files, source and size."""
    ends: dict[Path, Count] = {}
    for prefix, source, size in counts:
        before = ends.get(prefix, Count())
        ends[prefix] = before + size
        yield DocumentSpan(prefix, source, before, size)


def open_documents(prefix: Path) -> tuple[np.ndarray, np.ndarray]:
    """Maps a pair, also Megatron's: token ids (tokens,), and lengths (documents,); a damaged one is a ``UserError``."""
    index, tokens = beside(prefix, "idx"), beside(prefix, "bin")
    dtype, lengths = _read_index(index)
    _check_size(tokens, expected := int(lengths.sum(dtype=np.int64)) * dtype.itemsize)
    return np.memmap(tokens, dtype=dtype, mode="r") if expected else np.zeros(0, dtype=dtype), lengths


def _check_size(path: Path, expected: int) -> None:
    if not path.is_file():
        raise UserError(f"{path} is missing; {REMEDY}")
    if (size := path.stat().st_size) != expected:
        raise UserError(f"{path} has {size} bytes instead of {expected}; {REMEDY}")


def _read_index(path: Path) -> tuple[np.dtype, np.ndarray]:
    if not path.is_file():
        raise UserError(f"{path} is missing; {REMEDY}")
    with path.open("rb") as index:
        header = index.read(_HEADER.size)
        if len(header) < _HEADER.size or not header.startswith(MAGIC):
            raise UserError(f"{path} is not a Megatron index; {REMEDY}")
        _, version, code, sequences, boundaries = _HEADER.unpack(header)
        if version != VERSION or code not in _TYPE_OF:
            raise UserError(f"{path} has version {version} and token type {code}; expected 1 and 8 or 4")
        _check_size(path, _HEADER.size + sequences * (4 + 8) + boundaries * 8)
        lengths = np.fromfile(index, dtype=np.int32, count=sequences)
        if boundaries != sequences + 1:  # Megatron's tools may write a document as several sequences
            index.seek(8 * sequences, 1)
            starts = np.fromfile(index, dtype=np.int64, count=boundaries)
            if not len(starts) or starts[0] or starts[-1] != sequences or (np.diff(starts) < 0).any():
                raise UserError(f"{path} has document boundaries that fit no sequences; {REMEDY}")
            lengths = np.diff(np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])[starts]).astype(np.int32)
    if (lengths < 0).any():
        raise UserError(f"{path} has documents of negative length; {REMEDY}")
    return np.dtype(_TYPE_OF[code]), lengths
