"""Shards: ranges of source files, cut in a way that nobody can change, that any process can turn into token files.

A shard becomes a folder, ``<id>/{train,val}/<domain>.{bin,idx}`` with ``<id>/done.json``, which is written aside and
renamed when it is whole. Its name is a hash of what it is made from, so writing a shard again changes nothing. Until
they are merged, shards lie in a ``WorkDir`` beside the output.
"""

import hashlib
import json
import logging
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

from inheritune_lit.data.args import PrepareArgs, ReadingArgs
from inheritune_lit.data.containers import open_parquet, row_group_bytes
from inheritune_lit.data.encoding import DocumentEncoder
from inheritune_lit.data.formats import ReadReport, Row, format_of, ids_hash, is_validation, read_rows, sample_key
from inheritune_lit.data.manifest import SPLITS, Count, PackedSettings
from inheritune_lit.data.megatron import DocumentWriter
from inheritune_lit.data.sources import SourceFile, check_domain, local_copy
from inheritune_lit.errors import UserError
from inheritune_lit.io.folders import explain_full_disk, own_folder, remove, restore
from inheritune_lit.io.manifest import sha256_file
from inheritune_lit.io.records import read_record, write_record

logger = logging.getLogger(__name__)

DONE = "done.json"
# Constants, not functions of the number of workers: a stopped preparation continues with any number of them.
_RANGE_BYTES = 1 << 25
_BUNDLE_BYTES = 1 << 20
# Enough text to make calls of a tokenizer library worth while, and little enough to bound memory.
_BATCH_CHARACTERS = 1 << 20
_HOPELESS_ROWS = 1000
_HELD_BYTES = 1 << 23
_MAX_DOMAINS = 10_000

Report = Callable[[int, Count], None]  # takes bytes read and documents packed since the last call


@dataclass(frozen=True)
class SourceRange:
    """A source file, or a range of it from byte or row group ``start`` to before ``stop``; ``bytes`` are stored."""

    source: SourceFile
    start: int
    stop: int | None
    bytes: int


@dataclass(frozen=True)
class Shard:
    """Consecutive ranges that one worker turns into token files."""

    ranges: tuple[SourceRange, ...]

    @cached_property
    def id(self) -> str:
        """A hash of the ranges, so that a file that has changed is read again."""
        # Where the files are does not matter: a corpus may be moved, or mounted elsewhere on another machine.
        identity = [asdict(part) for part in self.ranges]
        for fields in identity:
            del fields["source"]["path"]
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:24]

    @property
    def bytes(self) -> int:
        """Stored bytes of its ranges."""
        return sum(part.bytes for part in self.ranges)


def plan_shards(sources: list[SourceFile], args: ReadingArgs) -> list[Shard]:
    """Cuts large plain files by bytes, parquet by row groups, bundles small ones; a bad file is a ``UserError``."""
    bundles: list[list[SourceRange]] = []
    left = 0
    for part in (part for source in sources for part in _cut(source, args)):
        if not bundles or part.bytes > left:
            bundles.append([])
            left = _BUNDLE_BYTES
        bundles[-1].append(part)
        left -= part.bytes
    return [Shard(tuple(bundle)) for bundle in bundles]


def _cut(source: SourceFile, args: ReadingArgs) -> list[SourceRange]:
    kind = format_of(source.name, args)
    assert kind is not None, source  # files of other kinds are no sources
    if source.bytes <= _RANGE_BYTES or kind.ranges is None or source.on_hub:
        return [SourceRange(source, 0, None, source.bytes)]
    if kind.ranges == "bytes":
        edges = pairwise([*range(0, source.bytes, _RANGE_BYTES), source.bytes])
        return [SourceRange(source, start, stop, stop - start) for start, stop in edges]
    ranges, first, size = [], 0, 0
    with open_parquet(Path(source.path)) as file:
        groups = row_group_bytes(file)
    for number, group_bytes in enumerate(groups, start=1):
        size += group_bytes
        if size >= _RANGE_BYTES or number == len(groups):
            ranges.append(SourceRange(source, first, number, size))
            first, size = number, 0
    return ranges or [SourceRange(source, 0, None, source.bytes)]


@dataclass(frozen=True)
class ShardSettings(PackedSettings):
    """What a preparation was started with, and the ``sample_key`` below which each domain's documents are kept."""

    thresholds: dict[str, int] | None


@dataclass(frozen=True)
class ShardContext:
    """What every shard of a preparation shares."""

    folder: Path  # where shards go
    base: Path  # of relative paths of sources and tokenizer
    args: PrepareArgs
    settings: ShardSettings


@dataclass(frozen=True)
class RangeRecord:
    """What became of a range of the source with this name."""

    source: str
    sha256: str | None  # of the whole file, for the range that begins it
    report: ReadReport
    counts: dict[str, dict[str, Count]]  # what was packed, by domain and split


@dataclass(frozen=True)
class ShardRecord:
    """``done.json`` of a shard."""

    ranges: list[RangeRecord]
    files: dict[str, str]  # SHA-256 by path below the folder

    @classmethod
    def read(cls, folder: Path) -> "ShardRecord":
        """Returns the record of a finished shard."""
        record = read_record(folder / DONE, ShardRecord, "a shard's record", "the shard is made again")
        for domain in (domain for part in record.ranges for domain in part.counts):
            check_domain(domain, str(folder / DONE))
        return record


class WorkDir:
    """``.<name of the output>.prepare`` beside the real output, made when locked: shards and settings they follow."""

    def __init__(self, out_dir: Path) -> None:
        self.out_dir, self._real = out_dir, Path(os.path.realpath(out_dir))
        self.path = self._real.with_name(f".{self._real.name}.prepare")
        self.shards, self.plan = self.path / "shards", self.path / "plan.json"

    def finished(self, shards: Sequence[Shard]) -> list[Shard]:
        """Returns the shards whose folders are whole."""
        return [shard for shard in shards if (self.shards / shard.id / DONE).is_file()]

    def remove_damaged(self, shards: Sequence[Shard]) -> None:
        """Removes shards whose files are not as their records say, so that they are made again."""
        for folder in (self.shards / shard.id for shard in shards):
            try:
                files = ShardRecord.read(folder).files if os.path.lexists(folder) else {}
                for name, sha256 in files.items():
                    if not (folder / name).is_file() or sha256_file(folder / name) != sha256:
                        raise UserError(f"{folder / name} is not as it was written; the shard is made again")
            except UserError as error:
                logger.warning(f"inheritune: warning: {error}")
                remove(folder)

    def read_settings(self) -> ShardSettings | None:
        """Returns what an earlier call was started with, or None."""
        about = "the plan of a preparation", f"remove {self.path}"
        return read_record(self.plan, ShardSettings, *about) if self.plan.is_file() else None

    def restore_output(self) -> None:
        """Undoes or completes the replacement of a former output, where the last call was killed in the middle."""
        if self.path.is_dir():
            with self.locked():
                restore(self._real)

    def remove(self) -> None:
        """Removes everything; shards leave their name first, so that none is taken for whole later."""
        with suppress(OSError):
            remove(self.shards)
        shutil.rmtree(self.path, ignore_errors=True)

    def _remove_leftovers(self) -> None:
        for leftover in (self.path / "probe", *self.shards.glob("*.tmp-*")):
            shutil.rmtree(leftover, ignore_errors=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Makes the folder and keeps other calls out while the block runs; an empty one is removed afterwards."""
        with explain_full_disk(self.path), own_folder(self.path, self.out_dir):
            try:
                self.shards.mkdir(exist_ok=True)
                self._remove_leftovers()  # which may fill the disk
                yield
            finally:
                self._remove_leftovers()
                if not any(self.shards.glob(f"*/{DONE}")):
                    self.remove()


_thread = threading.local()


def write_shard(context: ShardContext, shard: Shard) -> list[tuple[int, Count]]:
    """Writes a shard in a worker of a pool or cluster, whose tokenizer stays loaded; returns what was reported."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # a worker is given one core
    writer: ShardWriter | None = getattr(_thread, "writer", None)
    if writer is None or writer.context != context:
        writer = _thread.writer = ShardWriter(context)
    steps: list[tuple[int, Count]] = []
    writer.write(shard, lambda size, count: steps.append((size, count)))
    return steps


class ShardWriter:
    """Writes shards one after another, keeping tokenizer and cache; another tokenizer than before is refused."""

    def __init__(self, context: ShardContext) -> None:
        self.context, args, settings = context, context.args, context.settings
        assert args.tokenizer_dir is not None, "PrepareArgs checks it"
        folder = context.base / args.tokenizer_dir
        self._encoder = DocumentEncoder(folder, settings.dtype, args.parse_special_tokens)
        tokenizer = self._encoder.tokenizer
        if tokenizer.sha256() != settings.tokenizer.sha256:
            raise UserError(f"{tokenizer.path} is another tokenizer here than where the preparation was started")
        with_end = args.end_of_document and tokenizer.eos_id is not None
        self._ending = self._encoder.pack([tokenizer.eos_id or 0]) if with_end else b""

    def write(self, shard: Shard, report: Report) -> None:
        """Writes a shard's folder, unless it is there already; one that fails, such as by a full disk, leaves none."""
        final = self.context.folder / shard.id
        if (final / DONE).is_file():
            report(shard.bytes, Count())
            return
        with explain_full_disk(self.context.folder):
            staging = Path(tempfile.mkdtemp(prefix=f"{shard.id}.tmp-", dir=self.context.folder))
            try:
                with _ShardOutput(staging, self.context) as output:
                    records = [self._encode(part, output, report) for part in shard.ranges]
                paths = [path for split in SPLITS for path in (staging / split).glob("*")]
                files = {path.relative_to(staging).as_posix(): sha256_file(path) for path in paths}
                write_record(staging / DONE, ShardRecord(records, files))
                try:
                    os.replace(staging, final)
                except OSError:
                    if not (final / DONE).is_file():  # where it is, another worker was faster
                        raise
            finally:
                shutil.rmtree(staging, ignore_errors=True)

    def _encode(self, part: SourceRange, output: "_ShardOutput", report_step: Report) -> RangeRecord:
        source, report, seen = part.source, ReadReport(), 0
        counts: dict[str, dict[str, Count]] = {}
        with local_copy(source, output.folder / "download") as found:
            path = self.context.base / found
            rows = read_rows(path, self.context.args, report, part.start, part.stop)
            for batch in self._batches(rows, source, report):
                step = Count()
                for (text, domain), ids in zip(batch, self._encoder.encode([text for text, _ in batch]), strict=True):
                    if ids is None:
                        report.long_rows += 1
                    elif not ids:
                        report.empty_rows += 1
                    else:
                        report.note_text(text)
                        split, count = output.add(domain, text, ids + self._ending)
                        by_split = counts.setdefault(domain, {})
                        by_split[split] = by_split.get(split, Count()) + count
                        step += count
                report_step(report.bytes_read - seen, step)
                seen = report.bytes_read
            sha256 = sha256_file(path) if part.start == 0 else None
            status = path.stat()
            if not source.on_hub and (status.st_size, str(status.st_mtime_ns)) != (source.bytes, source.version):
                raise UserError(f"{path} changed while it was read; run the same command again when it is complete")
        report_step(part.bytes - seen, Count())
        if report.broken_rows > max(_HOPELESS_ROWS, report.rows // 2):
            report.check(source.path)  # do not read a terabyte for the wrong --text_field
        return RangeRecord(source.name, sha256, report, counts)

    def _batches(self, rows: Iterator[Row], source: SourceFile, report: ReadReport) -> Iterator[list[tuple[str, str]]]:
        """Yields the texts worth encoding and their domains."""
        thresholds, seed = self.context.settings.thresholds, self.context.args.seed
        batch, characters = [], 0
        for text, domain in rows:
            if not text or text.isspace():
                report.empty_rows += 1
            elif thresholds is None or sample_key(text, seed) < thresholds[source.domain]:
                batch.append((text, source.domain if domain is None else check_domain(domain, source.path)))
                characters += len(text)
                if characters >= _BATCH_CHARACTERS:
                    yield batch
                    batch, characters = [], 0
        if batch:
            yield batch


class _ShardOutput(ExitStack):
    """Files of a shard by split and domain, made when the first document comes."""

    def __init__(self, folder: Path, context: ShardContext) -> None:
        super().__init__()
        self.folder, self._args, self._dtype = folder, context.args, context.settings.dtype
        self._writers: dict[Path, DocumentWriter] = {}
        self._held = 0  # bytes in all writers

    def add(self, domain: str, text: str, ids: bytes) -> tuple[str, Count]:
        """Appends a document to its split; returns the split and the document's size."""
        split = "val" if is_validation(text, self._args.val_fraction) else "train"
        prefix = self.folder / split / domain
        if prefix not in self._writers:
            if len(self._writers) >= 2 * _MAX_DOMAINS:
                many = f"--domain_field {self._args.domain_field} names more than {_MAX_DOMAINS:,} domains"
                raise UserError(f"{many}, such as {domain!r}; name a field with fewer")
            prefix.parent.mkdir(exist_ok=True)
            self._writers[prefix] = self.enter_context(DocumentWriter(prefix, self._dtype))
        numbers = {}
        if self._args.max_tokens is not None:
            numbers["sample"] = sample_key(text, self._args.seed).to_bytes(8, sys.byteorder)
        if self._args.drop_duplicates:
            numbers["hash"] = ids_hash(ids)
        self._held += len(ids) + sum(map(len, numbers.values()))
        added = Count(1, self._writers[prefix].add(ids, **numbers))
        if self._held > _HELD_BYTES:
            for writer in self._writers.values():
                writer.flush()
            self._held = 0
        return split, added
