"""Which of the encoded documents are kept: the first of equal ones, and those a quota has room for."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from inheritune_lit.data.join import Segment
from inheritune_lit.data.megatron import bin_path, read_lengths
from inheritune_lit.data.parts import ids_hash, key_path
from inheritune_lit.data.subset import Quota, cut_keys

Place = tuple[str, str]
"""Split and domain."""


def select(
    segments: Mapping[Place, Sequence[Segment]],
    drop_duplicates: bool,
    quotas: Sequence[Quota],
    packed: Path,
    dtype: str,
) -> tuple[dict[Place, list[np.ndarray]] | None, int]:
    """Which documents of each segment to keep, bool, shape (documents,), None for all; and how many are duplicates.

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
        return None, 0
    keep = {place: [np.ones(part.documents, dtype=bool) for part in parts] for place, parts in segments.items()}
    duplicates = _keep_first(segments, keep, packed, dtype) if drop_duplicates else 0
    for quota in quotas:
        places = [(split, domain) for split, domain in segments if domain in quota.domains]
        parts = [(part, mask) for place in places for part, mask in zip(segments[place], keep[place], strict=True)]
        if not parts:
            continue
        keys = [_numbers(part, "sample", "<u8") for part, _ in parts]
        lengths = [read_lengths(part.prefix, part.first_document, part.documents) for part, _ in parts]
        cut = cut_keys(
            np.concatenate([some[mask] for some, (_, mask) in zip(keys, parts, strict=True)]),
            np.concatenate([some[mask] for some, (_, mask) in zip(lengths, parts, strict=True)]),
            quota.tokens,
        )
        for some, (_, mask) in zip(keys, parts, strict=True):
            mask &= some <= np.uint64(cut - 1) if cut else False
    return keep, duplicates


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


def _numbers(segment: Segment, name: str, kind: np.dtype | str) -> np.ndarray:
    dtype = np.dtype(kind)
    with key_path(segment.prefix, name).open("rb") as file:
        file.seek(segment.first_document * dtype.itemsize)
        return np.frombuffer(file.read(segment.documents * dtype.itemsize), dtype=dtype)
