"""Documents of shards, and those packed before, into one pair of files per domain and split, in the sources' order."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from inheritune_lit.data.megatron import bin_path, idx_path, read_lengths, write_index
from inheritune_lit.io.manifest import sha256_file

_COPY_BYTES = 1 << 22
_DOCUMENTS = 1 << 20


@dataclass(frozen=True)
class DocumentSpan:
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

    def lengths(self) -> np.ndarray:
        """Returns the documents' lengths in tokens, int32, shape (documents,)."""
        return read_lengths(self.prefix, self.first_document, self.documents)


def consecutive_spans(
    counts: Iterable[tuple[Path, str, Mapping[str, int]]],
) -> Iterator[DocumentSpan]:
    """Yields the spans that lie one behind the other in their files.

    Args:
        counts: of each span its files without extension, the name of its source, and its documents and tokens.
    """
    ends: dict[Path, tuple[int, int]] = {}
    for prefix, source, count in counts:
        documents, tokens = ends.get(prefix, (0, 0))
        ends[prefix] = documents + count["documents"], tokens + count["tokens"]
        yield DocumentSpan(prefix, source, documents, count["documents"], tokens, count["tokens"])


@dataclass(frozen=True)
class MergedFiles:
    """A finished pair of files.

    Attributes:
        counts: documents and tokens of each source.
        max_token_id: the largest token id.
        files: bytes and SHA-256 of the ``.bin`` and the ``.idx``, by extension; none where no document is kept.
    """

    counts: dict[str, dict[str, int]]
    max_token_id: int
    files: dict[str, dict[str, int | str]]

    def total(self) -> dict[str, int]:
        """Returns documents and tokens over all sources."""
        return {name: sum(count[name] for count in self.counts.values()) for name in ("documents", "tokens")}


def merge_shards(
    prefix: Path,
    dtype: str,
    spans: Sequence[DocumentSpan],
    keep: Sequence[np.ndarray] | None,
    report: Callable[[int], None],
) -> MergedFiles:
    """Writes ``prefix.bin`` and ``prefix.idx``; nothing where no document is kept.

    Args:
        prefix: path without extension, in a folder that exists.
        dtype: "uint16" or "int32".
        spans: what to copy, in order.
        keep: which documents of each span, bool, shape (documents,); all when None.
        report: called with each span's tokens when it is done.
    """
    masks = keep if keep is not None else [None] * len(spans)
    counts: dict[str, dict[str, int]] = {}
    for span, mask in zip(spans, masks, strict=True):
        count = counts.setdefault(span.source, {"documents": 0, "tokens": 0})
        count["documents"] += span.documents if mask is None else int(mask.sum())
        count["tokens"] += span.tokens if mask is None else int(span.lengths()[mask].sum(dtype=np.int64))
    documents = sum(count["documents"] for count in counts.values())
    if not documents:
        report(sum(span.tokens for span in spans))
        return MergedFiles(counts, 0, {})
    digest, max_token_id, itemsize = hashlib.sha256(), 0, np.dtype(dtype).itemsize
    with bin_path(prefix).open("wb") as target:
        for span, mask in zip(spans, masks, strict=True):
            with bin_path(span.prefix).open("rb") as source:
                for first, tokens in _kept_ranges(span, mask):
                    for chunk in _chunks(source, first * itemsize, tokens * itemsize):
                        digest.update(chunk)
                        max_token_id = max(max_token_id, int(np.frombuffer(chunk, dtype=dtype).max()))
                        target.write(chunk)
            report(span.tokens)
        size = target.tell()
    write_index(prefix, dtype, _kept_lengths(spans, masks), documents)
    index = idx_path(prefix)
    files: dict[str, dict[str, int | str]] = {
        "bin": {"bytes": size, "sha256": digest.hexdigest()},
        "idx": {"bytes": index.stat().st_size, "sha256": sha256_file(index)},
    }
    return MergedFiles(counts, max_token_id, files)


def _kept_lengths(spans: Sequence[DocumentSpan], masks: Sequence[np.ndarray | None]) -> Iterator[np.ndarray]:
    for span, mask in zip(spans, masks, strict=True):
        for first in range(0, span.documents, _DOCUMENTS):
            count = min(_DOCUMENTS, span.documents - first)
            lengths = read_lengths(span.prefix, span.first_document + first, count)
            yield lengths if mask is None else lengths[mask[first : first + count]]


def _kept_ranges(span: DocumentSpan, mask: np.ndarray | None) -> Iterator[tuple[int, int]]:
    """Yields first token and number of tokens of each run of kept documents."""
    if mask is None or mask.all():
        yield span.first_token, span.tokens
        return
    ends = span.first_token + np.cumsum(span.lengths(), dtype=np.int64)
    starts = np.concatenate([[span.first_token], ends[:-1]])
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
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
