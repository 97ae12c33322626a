"""Shards: ranges of source files, cut in a way that nobody can change, that any process can turn into token files.

A shard becomes a folder, ``<id>/{train,val}/<domain>.{bin,idx}`` with ``<id>/done.json``, which is written aside and
renamed when it is whole. Its name is a hash of what it is made from, so writing a shard again changes nothing.
"""

import hashlib
import json
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from inheritune_lit.data.args import PrepareArgs, ReadingArgs
from inheritune_lit.data.documents import (
    Fault,
    ReadReport,
    digest_is_validation,
    ids_hash,
    sample_key,
    text_digest,
)
from inheritune_lit.data.encoding import DocumentEncoder
from inheritune_lit.data.formats import format_of, row_group_bytes
from inheritune_lit.data.megatron import DocumentWriter, sidecar_path
from inheritune_lit.data.sources import SourceFile, check_domain, local_copy
from inheritune_lit.errors import UserError
from inheritune_lit.io.folders import explain_full_disk
from inheritune_lit.io.manifest import sha256_file

DONE = "done.json"
# Constants, not functions of the number of workers: a stopped preparation continues with any number of them.
_RANGE_BYTES = 1 << 25
_BUNDLE_BYTES = 1 << 20
# Enough text to make calls of a tokenizer library worth while, and little enough to bound memory.
_BATCH_CHARACTERS = 1 << 20
_HOPELESS_ROWS = 1000


@dataclass(frozen=True)
class SourceRange:
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
class Shard:
    """Consecutive ranges that one worker turns into token files.

    Attributes:
        ranges: what to read, in order.
        id: a hash of the ranges, so a file that has changed is read again.
    """

    ranges: tuple[SourceRange, ...]
    id: str

    @property
    def bytes(self) -> int:
        """Stored bytes of its ranges."""
        return sum(part.bytes for part in self.ranges)


def plan_shards(sources: list[SourceFile], args: ReadingArgs) -> list[Shard]:
    """Cuts sources into shards: large plain files by bytes, parquet by row groups, small files bundled.

    Args:
        sources: in the order in which their documents shall stand.
        args: decide how files are read.

    Raises:
        UserError: a parquet file cannot be read.
    """
    shards: list[Shard] = []
    bundle: list[SourceRange] = []
    for part in (part for source in sources for part in _cut(source, args)):
        if bundle and sum(other.bytes for other in bundle) + part.bytes > _BUNDLE_BYTES:
            shards.append(_make_shard(bundle))
            bundle = []
        bundle.append(part)
    return [*shards, _make_shard(bundle)] if bundle else shards


def _cut(source: SourceFile, args: ReadingArgs) -> list[SourceRange]:
    kind = format_of(source.name, args)
    assert kind is not None, source  # files of other kinds are no sources
    whole = [SourceRange(source, 0, None, source.bytes)]
    if source.bytes <= _RANGE_BYTES or kind.ranges is None or source.on_hub:
        return whole
    if kind.ranges == "bytes":
        starts = range(0, source.bytes, _RANGE_BYTES)
        stops = [min(start + _RANGE_BYTES, source.bytes) for start in starts]
        return [SourceRange(source, start, stop, stop - start) for start, stop in zip(starts, stops, strict=True)]
    ranges, first, size = [], 0, 0
    groups = row_group_bytes(Path(source.path))
    for number, group_bytes in enumerate(groups, start=1):
        size += group_bytes
        if size >= _RANGE_BYTES or number == len(groups):
            ranges.append(SourceRange(source, first, number, size))
            first, size = number, 0
    return ranges or whole


def _make_shard(ranges: list[SourceRange]) -> Shard:
    # Where the files are does not matter: a corpus may be moved, or mounted elsewhere on another machine.
    identity = [asdict(part) for part in ranges]
    for fields in identity:
        del fields["source"]["path"]
    return Shard(tuple(ranges), hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:24])


@dataclass(frozen=True)
class ShardContext:
    """What every shard of a preparation shares.

    Attributes:
        folder: where shards go.
        base: what relative paths of sources are relative to.
        tokenizer_dir: folder with the tokenizer.
        tokenizer_sha256: what it has to hold, also on another machine.
        dtype: "uint16" or "int32".
        args: what decides the result.
        thresholds: a document is kept only where its ``sample_key`` is below its domain's; None keeps all.
    """

    folder: Path
    base: Path
    tokenizer_dir: Path
    tokenizer_sha256: str
    dtype: str
    args: PrepareArgs
    thresholds: dict[str, int] | None


@dataclass
class Step:
    """Work done since the last step was reported."""

    bytes: int = 0
    documents: int = 0
    tokens: int = 0

    def add(self, other: "Step") -> None:
        """Adds another step to this one."""
        self.bytes += other.bytes
        self.documents += other.documents
        self.tokens += other.tokens


@dataclass(frozen=True)
class RangeRecord:
    """What became of a range.

    Attributes:
        source: name of the source file.
        sha256: of the whole file, for the range that begins it.
        report: rows that were met.
        counts: documents and tokens by domain and split.
    """

    source: str
    sha256: str | None
    report: ReadReport
    counts: dict[str, dict[str, dict[str, int]]]


def read_records(folder: Path) -> list[RangeRecord]:
    """Returns the records of a finished shard's ranges, in order."""
    records = []
    for record in json.loads((folder / DONE).read_text(encoding="utf-8")):
        fault = record["report"].pop("first_broken")
        report = ReadReport(**record.pop("report"), first_broken=fault and Fault(**fault))
        records.append(RangeRecord(**record, report=report))
    return records


_thread = threading.local()


def write_shard(context: ShardContext, shard: Shard) -> Step:
    """Writes a shard in a worker of a pool or cluster, whose tokenizer stays loaded from one shard to the next."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # a worker is given one core
    writer: ShardWriter | None = getattr(_thread, "writer", None)
    if writer is None or writer.context != context:
        writer = _thread.writer = ShardWriter(context)
    done = Step()
    writer.write(shard, done.add)
    return done


class ShardWriter:
    """Writes shards one after another, keeping the tokenizer and its cache between them.

    Args:
        context: what the shards share.

    Raises:
        UserError: the tokenizer is not the one that the preparation began with.
    """

    def __init__(self, context: ShardContext) -> None:
        self.context = context
        self._encoder = DocumentEncoder(context.tokenizer_dir, context.dtype, context.args.parse_special_tokens)
        tokenizer = self._encoder.tokenizer
        if tokenizer.sha256() != context.tokenizer_sha256:
            raise UserError(f"{tokenizer.path} is another tokenizer here than where the preparation was started")
        with_end = context.args.end_of_document and tokenizer.eos_id is not None
        self._ending = self._encoder.pack([tokenizer.eos_id or 0]) if with_end else b""

    def write(self, shard: Shard, report: Callable[[Step], None]) -> None:
        """Writes a shard's folder, unless it is there already.

        Args:
            shard: what to read.
            report: called with each step.

        Raises:
            UserError: a source cannot be read or has changed, or the disk is full; no folder is left.
        """
        final = self.context.folder / shard.id
        if (final / DONE).is_file():
            report(Step(shard.bytes))
            return
        with explain_full_disk(self.context.folder):
            staging = Path(tempfile.mkdtemp(prefix=f"{shard.id}.tmp-", dir=self.context.folder))
            try:
                with ExitStack() as stack:
                    output = _ShardOutput(staging, self.context, stack)
                    records = [self._encode(part, output, staging, report) for part in shard.ranges]
                (staging / DONE).write_text(json.dumps(list(map(asdict, records))), encoding="utf-8")
                try:
                    os.replace(staging, final)
                except OSError:
                    if not (final / DONE).is_file():  # where it is, another worker was faster
                        raise
            finally:
                shutil.rmtree(staging, ignore_errors=True)

    def _encode(
        self, part: SourceRange, output: "_ShardOutput", staging: Path, report_step: Callable[[Step], None]
    ) -> RangeRecord:
        source, args = part.source, self.context.args
        kind = format_of(source.name, args)
        assert kind is not None, source
        report, seen = ReadReport(), 0
        output.start_range()
        with local_copy(source, staging / "download") as found:
            path = self.context.base / found
            rows = kind.read(path, part.start, part.stop, args, report)
            for batch in _batches(self._kept(rows, source, report)):
                before = output.documents, output.tokens
                texts = [text for text, _, _ in batch]
                for (_, domain, digest), ids in zip(batch, self._encoder.encode(texts), strict=True):
                    if ids is None:
                        report.long_rows += 1
                    elif not ids:
                        report.empty_rows += 1
                    else:
                        output.add(domain, digest, ids + self._ending)
                report_step(Step(report.bytes_read - seen, output.documents - before[0], output.tokens - before[1]))
                seen = report.bytes_read
            sha256 = sha256_file(path) if part.start == 0 else None
            _check_unchanged(source, path)
        report_step(Step(part.bytes - seen))
        if report.broken_rows > max(_HOPELESS_ROWS, report.rows // 2):
            report.check(source.path)  # do not read a terabyte for the wrong --text_field
        return RangeRecord(source.name, sha256, report, output.counts())

    def _kept(
        self, rows: Iterator[tuple[str, str | None]], source: SourceFile, report: ReadReport
    ) -> Iterator[tuple[str, str, bytes]]:
        """Yields the texts worth encoding, with their domains and digests."""
        thresholds, seed = self.context.thresholds, self.context.args.seed
        for text, named_domain in rows:
            if not text or text.isspace():
                report.empty_rows += 1
                continue
            digest = text_digest(text)
            if thresholds is None or sample_key(digest, seed) < thresholds[source.domain]:
                domain = source.domain if named_domain is None else check_domain(named_domain, source.path)
                yield text, domain, digest


class _ShardOutput:
    """Files of a shard by split and domain, opened when the first document comes."""

    def __init__(self, folder: Path, context: ShardContext, stack: ExitStack) -> None:
        self._folder, self._context, self._stack = folder, context, stack
        self._writers: dict[tuple[str, str], DocumentWriter] = {}
        self._sidecars: dict[tuple[str, str, str], BinaryIO] = {}
        self._before: dict[tuple[str, str], tuple[int, int]] = {}
        self.documents = self.tokens = 0

    def start_range(self) -> None:
        """Counts anew."""
        self._before = {key: (writer.documents, writer.tokens) for key, writer in self._writers.items()}

    def counts(self) -> dict[str, dict[str, dict[str, int]]]:
        """Returns documents and tokens of the range by domain and split."""
        counts: dict[str, dict[str, dict[str, int]]] = {}
        for (split, domain), writer in sorted(self._writers.items()):
            documents, tokens = self._before.get((split, domain), (0, 0))
            if writer.documents > documents:
                count = {"documents": writer.documents - documents, "tokens": writer.tokens - tokens}
                counts.setdefault(domain, {})[split] = count
        return counts

    def add(self, domain: str, digest: bytes, ids: bytes) -> None:
        """Appends a document to its split."""
        args = self._context.args
        key = ("val" if digest_is_validation(digest, args.val_fraction) else "train", domain)
        writer = self._writers.get(key) or self._open(key)
        before = writer.tokens
        writer.add_packed(ids)
        self.documents += 1
        self.tokens += writer.tokens - before
        if args.max_tokens is not None:
            self._sidecars[(*key, "sample")].write(sample_key(digest, args.seed).to_bytes(8, sys.byteorder))
        if args.drop_duplicates:
            self._sidecars[(*key, "hash")].write(ids_hash(ids))

    def _open(self, key: tuple[str, str]) -> DocumentWriter:
        split, domain = key
        (self._folder / split).mkdir(exist_ok=True)
        prefix = self._folder / split / domain
        writer = self._writers[key] = self._stack.enter_context(DocumentWriter(prefix, self._context.dtype))
        wanted = {"sample": self._context.args.max_tokens is not None, "hash": self._context.args.drop_duplicates}
        for name in (name for name, needed in wanted.items() if needed):
            self._sidecars[(*key, name)] = self._stack.enter_context(sidecar_path(prefix, name).open("wb"))
        return writer


def _batches(rows: Iterator[tuple[str, str, bytes]]) -> Iterator[list[tuple[str, str, bytes]]]:
    batch: list[tuple[str, str, bytes]] = []
    characters = 0
    for row in rows:
        batch.append(row)
        characters += len(row[0])
        if characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _check_unchanged(source: SourceFile, path: Path) -> None:
    status = path.stat()
    if not source.on_hub and (status.st_size, str(status.st_mtime_ns)) != (source.bytes, source.version):
        raise UserError(f"{path} changed while it was read; run the same command again when it is complete")
