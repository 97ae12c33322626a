"""Documents of shards, and those packed before, into one pair of files per domain and split, in the sources' order."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import numpy as np

from inheritune_lit.data.manifest import Count, PackedFile
from inheritune_lit.data.megatron import beside, read_lengths, write_index
from inheritune_lit.io.manifest import sha256_file

_COPY_BYTES = 1 << 22
_DOCUMENTS = 1 << 20


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
        return Count(int(self.keep.sum()), int(self.lengths()[self.keep].sum(dtype=np.int64)))

    def lengths(self) -> np.ndarray:
        """Returns the documents' lengths in tokens, int32, shape (documents,)."""
        return read_lengths(self.prefix, self.before.documents, self.size.documents)

    def kept_lengths(self) -> Iterator[np.ndarray]:
        """Yields the lengths of the kept documents, some at a time."""
        for first in range(0, self.size.documents, _DOCUMENTS):
            count = min(_DOCUMENTS, self.size.documents - first)
            lengths = read_lengths(self.prefix, self.before.documents + first, count)
            yield lengths if self.keep is None else lengths[self.keep[first : first + count]]

    def kept_tokens(self) -> Iterator[tuple[int, int]]:
        """Yields first token and number of tokens of each run of kept documents."""
        if self.keep is None or self.keep.all():
            yield self.before.tokens, self.size.tokens
            return
        ends = self.before.tokens + np.cumsum(self.lengths(), dtype=np.int64)
        starts = np.concatenate([[self.before.tokens], ends[:-1]])
        edges = np.flatnonzero(np.diff(np.concatenate([[False], self.keep, [False]]).astype(np.int8)))
        for first, stop in edges.reshape(-1, 2).tolist():
            yield int(starts[first]), int(ends[stop - 1] - starts[first])


def consecutive_spans(counts: Iterable[tuple[Path, str, Count]]) -> Iterator[DocumentSpan]:
    """Yields spans that lie one behind the other in their files, from each one's files, source and size."""
    ends: dict[Path, Count] = {}
    for prefix, source, size in counts:
        before = ends.get(prefix, Count())
        ends[prefix] = before + size
        yield DocumentSpan(prefix, source, before, size)


def merge_spans(
    prefix: Path, dtype: str, spans: Sequence[DocumentSpan], report: Callable[[int], None]
) -> tuple[int, dict[str, PackedFile]]:
    """Writes the kept documents of spans as ``prefix.bin`` and ``prefix.idx``; nothing where there is none.

    ``report`` is called with each span's tokens when it is done. Returns the largest token id, and the files by ending.
    """
    documents = sum(span.kept.documents for span in spans)
    if not documents:
        report(sum(span.size.tokens for span in spans))
        return 0, {}
    digest, max_token_id, itemsize = hashlib.sha256(), 0, np.dtype(dtype).itemsize
    with beside(prefix, "bin").open("wb") as target:
        for span in spans:
            with beside(span.prefix, "bin").open("rb") as source:
                for first, tokens in span.kept_tokens():
                    for chunk in _chunks(source, first * itemsize, tokens * itemsize):
                        digest.update(chunk)
                        max_token_id = max(max_token_id, int(np.frombuffer(chunk, dtype=dtype).max()))
                        target.write(chunk)
            report(span.size.tokens)
        size = target.tell()
    write_index(prefix, dtype, (lengths for span in spans for lengths in span.kept_lengths()), documents)
    index = beside(prefix, "idx")
    index_file = PackedFile(index.stat().st_size, sha256_file(index))
    return max_token_id, {"bin": PackedFile(size, digest.hexdigest()), "idx": index_file}


def _chunks(file: BinaryIO, start: int, size: int) -> Iterator[bytes]:
    file.seek(start)
    while size:
        chunk = file.read(min(size, _COPY_BYTES))
        if not chunk:
            raise OSError(f"{file.name} ends too early")
        size -= len(chunk)
        yield chunk
