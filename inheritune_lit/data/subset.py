"""A random subset of a corpus: how many tokens each domain gives, and which documents make them up.

Every document has a key, uniform in [0, 2^64), that depends on the seed and its text alone; a subset of q tokens is the
documents with the smallest keys whose lengths add up to at most q. So it is the same for any number of workers, and a
larger q only adds documents. To encode little more than q tokens of a corpus far larger, documents are first dropped by
a threshold on the key that is estimated from a few megabytes of text and chosen somewhat too high.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from inheritune_lit.data.args import PrepareArgs
from inheritune_lit.data.encoding import DocumentEncoder
from inheritune_lit.data.formats.report import ReadReport
from inheritune_lit.data.formats.table import format_of
from inheritune_lit.data.jobs import Piece
from inheritune_lit.data.megatron import bin_path, read_lengths
from inheritune_lit.data.merge_shards import Segment
from inheritune_lit.data.shards import ids_hash, key_path
from inheritune_lit.data.sources import local_copy
from inheritune_lit.errors import UserError

_PROBES = 8  # places of a group that are read
_PROBE_CHARACTERS = 1 << 21
_MARGIN = 1.1  # for the error of the estimated tokens a byte
_DUPLICATES_MARGIN = 1.5  # for those and up to a quarter of the tokens in duplicates
_DEVIATIONS = 4  # for the number of tokens that chance lets through
KEYS = 1 << 64


@dataclass(frozen=True)
class Quota:
    """Tokens that some domains give together.

    Attributes:
        name: as in the mixture; "corpus" for all domains.
        tokens: how many, both splits together.
        domains: whose.
    """

    name: str
    tokens: int
    domains: tuple[str, ...]


def quotas_of(options: PrepareArgs, domains: Sequence[str]) -> list[Quota]:
    """Quotas of a subset; none where everything is taken.

    A mixture's name stands for the domain of that name and for those whose names begin with it and an underscore
    (``cc`` for ``cc_2019-30`` and ``cc_2023-06``).

    Raises:
        UserError: a domain or a name of the mixture has no counterpart.
    """
    if options.max_tokens is None:
        return []
    if options.mixture is None:
        return [Quota("corpus", options.max_tokens, tuple(sorted(domains)))]
    whole, quotas, left = sum(options.mixture.values()), [], set(domains)
    for name, part in options.mixture.items():
        covered = {domain for domain in left if domain == name or domain.startswith(f"{name}_")}
        if not covered:
            raise UserError(f"--mixture names {name!r}, the corpus has only {', '.join(sorted(domains))}; correct one")
        left -= covered
        quotas.append(Quota(name, round(options.max_tokens * part / whole), tuple(sorted(covered))))
    if left:
        raise UserError(f"--mixture leaves out {', '.join(sorted(left))}; give each a part, 0 for none of it")
    return quotas


def estimate_thresholds(
    quotas: Sequence[Quota], pieces: Sequence[Piece], encoder: DocumentEncoder, options: PrepareArgs, scratch: Path
) -> dict[str, int]:
    """Thresholds on documents' keys, by domain, that let through somewhat more than the quotas.

    Args:
        quotas: tokens wanted.
        pieces: the whole corpus.
        encoder: makes tokens of a few megabytes of each quota's domains.
        options: how rows are read.
        scratch: folder for files that have to be fetched.
    """
    thresholds = {}
    for quota in quotas:
        share = 0.0
        if quota.tokens:
            own = [piece for piece in pieces if piece.source.domain in quota.domains]
            lengths, read = _probe(own, encoder, options, scratch)
            margin = _DUPLICATES_MARGIN if options.drop_duplicates else _MARGIN
            share = keep_share(quota.tokens, lengths, read, sum(piece.bytes for piece in own), margin)
        thresholds.update(dict.fromkeys(quota.domains, min(KEYS, math.ceil(share * KEYS))))
    return thresholds


def keep_share(tokens: int, lengths: Sequence[int], read: int, total: int, margin: float) -> float:
    """Share of documents to let through so that at least ``tokens`` come, but for very bad luck.

    Args:
        tokens: tokens wanted.
        lengths: tokens of some documents.
        read: stored bytes these documents take.
        total: stored bytes of all.
        margin: how many times fewer tokens than estimated there may be.
    """
    if not lengths or (read >= total and sum(lengths) <= tokens):
        return 1.0
    scale = total / read / margin
    expected = scale * sum(lengths)
    # With share p, tokens have mean p * expected and variance below p * scale * sum of squares.
    spread = _DEVIATIONS * math.sqrt(scale * sum(length**2 for length in lengths))
    root = (spread + math.sqrt(spread**2 + 4 * expected * tokens)) / (2 * expected)
    return min(1.0, root**2)


def cut_keys(keys: np.ndarray, lengths: np.ndarray, tokens: int) -> int:
    """The key below which documents add up to at most ``tokens``.

    Args:
        keys: sample keys, uint64, shape (documents,).
        lengths: the documents' tokens, shape (documents,).
        tokens: tokens wanted.
    """
    order = np.argsort(keys, kind="stable")
    fit = int(np.searchsorted(np.cumsum(lengths[order], dtype=np.int64), tokens, side="right"))
    return int(keys[order[fit]]) if fit < len(order) else KEYS


def _probe(
    pieces: Sequence[Piece], encoder: DocumentEncoder, options: PrepareArgs, scratch: Path
) -> tuple[list[int], int]:
    """Lengths in tokens of some documents from all over the pieces, and the stored bytes they take."""
    ends = np.cumsum([piece.bytes for piece in pieces])
    places = (np.arange(_PROBES) + 0.5) / _PROBES * ends[-1]
    lengths: list[int] = []
    read = 0
    itemsize = np.dtype(encoder.dtype).itemsize
    for number in np.unique(np.searchsorted(ends, places, side="right")).tolist():
        piece, report, texts, characters = pieces[number], ReadReport(), [], 0
        kind = format_of(piece.source.name, options)
        assert kind is not None, piece
        with local_copy(piece.source.path, scratch) as path:
            for text, _ in kind.read(path, piece.start, piece.stop, options, report):
                texts.append(text)
                characters += len(text)
                if characters >= _PROBE_CHARACTERS:
                    break
        lengths += [len(ids) // itemsize + options.end_of_document for ids in encoder.encode(texts) if ids]
        read += report.bytes_read
    return lengths, read


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
