"""Part files into one pair of files a domain and split, in the order of the sources."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from inheritune_lit.data.megatron import bin_path, idx_path, read_lengths, write_index
from inheritune_lit.io.manifest import sha256_file

_COPY_BYTES = 1 << 22
_DOCUMENTS = 1 << 20


@dataclass(frozen=True)
class Segment:
    """Consecutive documents of a pair of files, all from one source.

    Attributes:
        prefix: the files, without extension.
        source: name of the source.
        first_document, documents: which documents.
        first_token, tokens: where they are in the ``.bin``.
    """

    prefix: Path
    source: str
    first_document: int
    documents: int
    first_token: int
    tokens: int


@dataclass(frozen=True)
class Joined:
    """A finished pair of files.

    Attributes:
        counts: documents and tokens of each source.
        max_token_id: the largest token id.
        files: (bytes, SHA-256) of the ``.bin`` and the ``.idx``, by extension.
    """

    counts: dict[str, dict[str, int]]
    max_token_id: int
    files: dict[str, tuple[int, str]]

    def total(self) -> dict[str, int]:
        """Documents and tokens over all sources."""
        return {name: sum(count[name] for count in self.counts.values()) for name in ("documents", "tokens")}


def join_segments(
    prefix: Path,
    dtype: str,
    segments: Sequence[Segment],
    keep: Sequence[np.ndarray] | None,
    report: Callable[[int], None],
) -> Joined:
    """Write ``prefix.bin`` and ``prefix.idx``; nothing where no document is kept.

    Args:
        prefix: path without extension, in a folder that exists.
        dtype: "uint16" or "int32".
        segments: what to copy, in order.
        keep: which documents of each segment, bool, shape (documents,); all when None.
        report: told of each segment's tokens when it is done.
    """
    digest, max_token_id = hashlib.sha256(), 0
    counts: dict[str, dict[str, int]] = {}
    for number, segment in enumerate(segments):
        count = counts.setdefault(segment.source, {"documents": 0, "tokens": 0})
        if keep is None:
            count["documents"] += segment.documents
            count["tokens"] += segment.tokens
        else:
            count["documents"] += int(keep[number].sum())
            count["tokens"] += int(_lengths(segment)[keep[number]].sum(dtype=np.int64))
    documents = sum(count["documents"] for count in counts.values())
    if not documents:
        report(sum(segment.tokens for segment in segments))
        return Joined(counts, 0, {})
    itemsize = np.dtype(dtype).itemsize
    with bin_path(prefix).open("wb") as target:
        for number, segment in enumerate(segments):
            with bin_path(segment.prefix).open("rb") as source:
                for first, tokens in _kept_ranges(segment, None if keep is None else keep[number]):
                    for chunk in _chunks(source, first * itemsize, tokens * itemsize):
                        digest.update(chunk)
                        max_token_id = max(max_token_id, int(np.frombuffer(chunk, dtype=dtype).max()))
                        target.write(chunk)
            report(segment.tokens)
        size = target.tell()
    write_index(prefix, dtype, _kept_lengths(segments, keep), documents)
    files = {
        "bin": (size, digest.hexdigest()),
        "idx": (idx_path(prefix).stat().st_size, sha256_file(idx_path(prefix))),
    }
    return Joined(counts, max_token_id, files)


def _lengths(segment: Segment) -> np.ndarray:
    return read_lengths(segment.prefix, segment.first_document, segment.documents)


def _kept_lengths(segments: Sequence[Segment], keep: Sequence[np.ndarray] | None) -> Iterator[np.ndarray]:
    for number, segment in enumerate(segments):
        if keep is not None:
            yield _lengths(segment)[keep[number]]
            continue
        for first in range(0, segment.documents, _DOCUMENTS):
            count = min(_DOCUMENTS, segment.documents - first)
            yield read_lengths(segment.prefix, segment.first_document + first, count)


def _kept_ranges(segment: Segment, keep: np.ndarray | None) -> Iterator[tuple[int, int]]:
    """First token and number of tokens of each run of kept documents."""
    if keep is None or keep.all():
        yield segment.first_token, segment.tokens
        return
    ends = segment.first_token + np.cumsum(_lengths(segment), dtype=np.int64)
    starts = np.concatenate([[segment.first_token], ends[:-1]])
    edges = np.flatnonzero(np.diff(np.concatenate([[False], keep, [False]]).astype(np.int8)))
    for first, stop in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        yield int(starts[first]), int(ends[stop - 1] - starts[first])


def _chunks(file: BinaryIO, start: int, size: int) -> Iterator[bytes]:
    file.seek(start)
    while size:
        chunk = file.read(min(size, _COPY_BYTES))
        if not chunk:
            raise OSError(f"{file.name} ends too early")
        size -= len(chunk)
        yield chunk
