"""The work of a preparation, cut into parts that any process can do, in an order that nobody can change."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from inheritune_lit.data.args import ReadingArgs
from inheritune_lit.data.formats.parquet import parquet_groups
from inheritune_lit.data.formats.table import format_of
from inheritune_lit.data.sources import SCHEME, SourceFile

# Constants, not functions of the number of workers: a stopped preparation goes on with any number of them.
_RANGE_BYTES = 1 << 25
_BUNDLE_BYTES = 1 << 20


@dataclass(frozen=True)
class Piece:
    """A source file or a range of it.

    Attributes:
        source: the file.
        start: first byte or row group.
        stop: the one after the last; None for a whole file.
        bytes: stored bytes, for progress.
    """

    source: SourceFile
    start: int
    stop: int | None
    bytes: int


@dataclass(frozen=True)
class Job:
    """Consecutive pieces that one process turns into part files.

    Attributes:
        pieces: what to read, in order.
        id: name of the part's folder: a hash of the pieces, so work on a file that has changed is done again.
    """

    pieces: tuple[Piece, ...]
    id: str

    @property
    def bytes(self) -> int:
        """Stored bytes of its pieces."""
        return sum(piece.bytes for piece in self.pieces)


def plan_jobs(sources: list[SourceFile], args: ReadingArgs) -> list[Job]:
    """Cut sources into jobs: large plain files by byte ranges, parquet by row groups, small files bundled.

    Args:
        sources: in the order in which their documents shall stand.
        args: decide how files are read.

    Raises:
        UserError: a parquet file cannot be read.
    """
    jobs: list[Job] = []
    bundle: list[Piece] = []
    for source in sources:
        for piece in _pieces(source, args):
            if bundle and sum(other.bytes for other in bundle) + piece.bytes > _BUNDLE_BYTES:
                jobs.append(_job(bundle))
                bundle = []
            bundle.append(piece)
    if bundle:
        jobs.append(_job(bundle))
    return jobs


def _pieces(source: SourceFile, args: ReadingArgs) -> list[Piece]:
    kind = format_of(source.name, args)
    assert kind is not None, source  # files of other kinds are no sources
    if source.bytes <= _RANGE_BYTES or kind.ranges is None or source.path.startswith(SCHEME):
        return [Piece(source, 0, None, source.bytes)]
    if kind.ranges == "bytes":
        ends = [*range(_RANGE_BYTES, source.bytes, _RANGE_BYTES), source.bytes]
        return [Piece(source, start, stop, stop - start) for start, stop in zip([0, *ends[:-1]], ends, strict=True)]
    pieces, first, size = [], 0, 0
    groups = parquet_groups(Path(source.path))
    for number, group_bytes in enumerate(groups, start=1):
        size += group_bytes
        if size >= _RANGE_BYTES or number == len(groups):
            pieces.append(Piece(source, first, number, size))
            first, size = number, 0
    return pieces or [Piece(source, 0, None, source.bytes)]


def _job(pieces: list[Piece]) -> Job:
    # Where the files are does not matter: a corpus may be moved, or mounted elsewhere on another machine.
    identity: list[list[Any]] = [[asdict(piece), piece.source.name] for piece in pieces]
    for fields, _ in identity:
        del fields["source"]["path"]
    return Job(tuple(pieces), hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:24])
