"""Which of the encoded documents are kept: the first of equal ones, and those a quota has room for."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from inheritune_lit.data.join import Segment
from inheritune_lit.data.megatron import bin_path, read_lengths
from inheritune_lit.data.parts import ids_hash, key_path
from inheritune_lit.data.subset import KEYS, Quota, cut_keys

Place = tuple[str, str]
"""Split and domain."""


@dataclass
class Selection:
    """What is kept.

    Attributes:
        keep: which documents of each segment, bool, shape (documents,); None for all.
        duplicates: how many documents equal an earlier one.
        short: quotas with fewer tokens than wanted though every document is kept, and their tokens.
    """

    keep: dict[Place, list[np.ndarray]] | None = None
    duplicates: int = 0
    short: list[tuple[Quota, int]] = field(default_factory=list)


def select(
    segments: Mapping[Place, Sequence[Segment]],
    drop_duplicates: bool,
    quotas: Sequence[Quota],
    packed: Path,
    dtype: str,
) -> Selection:
    """Choose the documents to keep.

    Memory: about 40 bytes a document for duplicates, 16 for quotas.

    Args:
        segments: everything there is.
        drop_duplicates: whether to keep only one of the documents with equal token ids. Those packed before are kept,
            then validation documents come first, so that none of them is met in training.
        quotas: tokens by domain.
        packed: folder of documents packed before.
        dtype: "uint16" or "int32".
    """
    if not drop_duplicates and not quotas:
        return Selection()
    keep = {place: [np.ones(part.documents, dtype=bool) for part in parts] for place, parts in segments.items()}
    selection = Selection(keep, _keep_first(segments, keep, packed, dtype) if drop_duplicates else 0)
    for quota in quotas:
        places = [(split, domain) for split, domain in segments if domain in quota.domains]
        parts = [(part, mask) for place in places for part, mask in zip(segments[place], keep[place], strict=True)]
        keys = [_numbers(part, "sample", np.dtype("<u8")) for part, _ in parts]
        lengths = _masked(
            [read_lengths(part.prefix, part.first_document, part.documents) for part, _ in parts], parts, np.int32
        )
        cut = cut_keys(_masked(keys, parts, np.uint64), lengths, quota.tokens)
        if cut == KEYS and (tokens := int(lengths.sum(dtype=np.int64))) < quota.tokens:
            selection.short.append((quota, tokens))
        for some, (_, mask) in zip(keys, parts, strict=True):
            mask &= some <= np.uint64(cut - 1) if cut else False
    return selection


def _masked(numbers: Sequence[np.ndarray], parts: Sequence[tuple[Segment, np.ndarray]], dtype: type) -> np.ndarray:
    """Numbers of the documents that are still kept, in one array."""
    kept = [some[mask] for some, (_, mask) in zip(numbers, parts, strict=True)]
    return np.concatenate([np.empty(0, dtype=dtype), *kept])


def _keep_first(
    segments: Mapping[Place, Sequence[Segment]], keep: Mapping[Place, list[np.ndarray]], packed: Path, dtype: str
) -> int:
    """Clear the mask of every document that equals an earlier one; return how many there are."""
    in_order = [
        (part, mask)
        for split, domain in sorted(segments, key=lambda place: (place[0] != "val", place[1]))
        for part, mask in zip(segments[split, domain], keep[split, domain], strict=True)
    ]
    in_order.sort(key=lambda item: packed not in item[0].prefix.parents)  # stable
    if not in_order:
        return 0
    hashes = np.concatenate([_hashes(part, packed, dtype) for part, _ in in_order])
    order = np.lexsort((hashes["low"], hashes["high"]))  # stable: equal ones stay in order
    ranked = hashes[order]
    again = np.zeros(len(hashes), dtype=bool)
    again[order[1:]] = ranked[1:] == ranked[:-1]
    first = 0
    for _, mask in in_order:
        mask &= ~again[first : first + len(mask)]
        first += len(mask)
    return int(again.sum())


def _hashes(segment: Segment, packed: Path, dtype: str) -> np.ndarray:
    kind = np.dtype([("high", "<u8"), ("low", "<u8")])
    if packed not in segment.prefix.parents:
        return _numbers(segment, "hash", kind)
    return np.frombuffer(b"".join(map(ids_hash, _documents(segment, np.dtype(dtype).itemsize))), dtype=kind)


def _documents(segment: Segment, itemsize: int) -> Iterator[bytes]:
    with bin_path(segment.prefix).open("rb") as file:
        file.seek(segment.first_token * itemsize)
        for length in read_lengths(segment.prefix, segment.first_document, segment.documents).tolist():
            yield file.read(length * itemsize)


def _numbers(segment: Segment, name: str, dtype: np.dtype) -> np.ndarray:
    with key_path(segment.prefix, name).open("rb") as file:
        file.seek(segment.first_document * dtype.itemsize)
        return np.frombuffer(file.read(segment.documents * dtype.itemsize), dtype=dtype)
