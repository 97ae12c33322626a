"""A random subset of a corpus: how many tokens each domain gives, and which documents make them up.

Every document has a key, uniform in [0, 2^64), that depends on the seed and its text alone; a subset of q tokens is the
documents with the smallest keys whose lengths add up to at most q. So it is the same for any number of workers, and a
larger q only adds documents. To encode little more than q tokens of a corpus far larger, documents are first dropped by
a threshold on the key that is estimated from a few megabytes of text and chosen somewhat too high.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from inheritune_lit.data.encoder import DocumentEncoder
from inheritune_lit.data.formats.report import ReadReport
from inheritune_lit.data.formats.table import format_of
from inheritune_lit.data.hub import local_copy
from inheritune_lit.data.jobs import Piece
from inheritune_lit.data.options import PrepareOptions
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


def quotas_of(options: PrepareOptions, domains: Sequence[str]) -> list[Quota]:
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
    quotas: Sequence[Quota], pieces: Sequence[Piece], encoder: DocumentEncoder, options: PrepareOptions, scratch: Path
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
    pieces: Sequence[Piece], encoder: DocumentEncoder, options: PrepareOptions, scratch: Path
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
