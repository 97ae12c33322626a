"""Formats of source files: jsonl and text, plain or compressed, and parquet."""

import gzip
import io
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from inheritune_lit.data.args import ReadingArgs
from inheritune_lit.data.documents import BrokenRow, ReadReport, check_text, parse_json, string_field
from inheritune_lit.errors import UserError, first_line

if TYPE_CHECKING:
    from pyarrow import RecordBatch
    from pyarrow.parquet import ParquetFile

Rows = Iterator[tuple[str, str | None]]
"""Text and domain of each row; the domain is None where rows do not name theirs."""
Reader = Callable[[Path, int, int | None, ReadingArgs, ReadReport], Rows]
"""Reads the rows of a file between two positions, the second None for all of it; brings the report up to date.

Positions are bytes or row groups, as ``FileFormat.ranges`` says, and 0 and None where that is None. A ``UserError``
says that the file cannot be read.
"""

_COMPRESSIONS = (".gz", ".zst")
_COMPRESSED_CHUNK = 1 << 14  # what these bytes expand to is held in memory
_BOM = b"\xef\xbb\xbf"
_BATCH_ROWS = 256


@dataclass(frozen=True)
class FileFormat:
    """How files of a kind are read.

    Attributes:
        read: yields a text and a domain for each row.
        ranges: what a range of such a file is counted in; None where it is read whole.
        text_share: bytes of text per stored byte, roughly.
    """

    read: Reader
    ranges: str | None
    text_share: float


def format_of(name: str, args: ReadingArgs) -> FileFormat | None:
    """Returns the format of a file, or None for a file that holds no corpus.

    ``.jsonl`` and ``.json`` (a row per line), ``.txt``, each also with ``.gz`` or ``.zst``; ``.parquet``.
    """
    stem = name
    for ending in _COMPRESSIONS:
        stem = stem.removesuffix(ending)
    plain = stem == name
    text_share = 0.9 if plain else 2.5
    if stem.endswith((".jsonl", ".json")):
        return FileFormat(_read_jsonl, "bytes" if plain else None, text_share)
    if stem.endswith(".txt"):
        if args.txt_documents == "line":
            return FileFormat(_read_txt_lines, "bytes" if plain else None, text_share)
        return FileFormat(_read_txt_file, None, text_share)
    if name.endswith(".parquet"):
        return FileFormat(_read_parquet, "row groups", 1.7)
    return None


def stem_of(name: str) -> str:
    """Returns a file's name without the endings that tell its format."""
    for ending in (*_COMPRESSIONS, ".jsonl", ".json", ".txt", ".parquet"):
        name = name.removesuffix(ending)
    return name


def _read_jsonl(path: Path, start: int, stop: int | None, args: ReadingArgs, report: ReadReport) -> Rows:
    for number, first, line in _read_lines(path, start, stop, args.max_document_bytes, report):
        try:
            row = parse_json(line)
            domain = string_field(row, args.domain_field) if args.domain_field else None
            text = string_field(row, args.text_field)
            if b"\\u" in line:
                check_text(text)
            yield text, domain
        except BrokenRow as fault:
            report.note_broken(number, first, str(fault))


def _read_txt_lines(path: Path, start: int, stop: int | None, args: ReadingArgs, report: ReadReport) -> Rows:
    for number, first, line in _read_lines(path, start, stop, args.max_document_bytes, report):
        try:
            yield line.rstrip(b"\r\n").decode("utf-8"), None
        except UnicodeDecodeError as error:
            report.note_broken(number, first, f"not UTF-8 ({error.reason})")


def _read_txt_file(path: Path, start: int, stop: int | None, args: ReadingArgs, report: ReadReport) -> Rows:
    with _open_lines(path) as (stream, file):
        content = stream.read(args.max_document_bytes + 1)
        report.bytes_read += file.tell()
    report.rows += 1
    if len(content) > args.max_document_bytes:
        report.long_rows += 1
        return
    try:
        text = content.removeprefix(_BOM).decode("utf-8")
    except UnicodeDecodeError as error:
        report.note_broken(1 + content[: error.start].count(b"\n"), 0, f"not UTF-8 ({error.reason})")
        return
    yield text, None


def _read_lines(
    path: Path, start: int, stop: int | None, max_bytes: int, report: ReadReport
) -> Iterator[tuple[int, int, bytes]]:
    """Yields the lines that begin in a range of bytes and are neither blank nor too long.

    Yields:
        The line's number, from 1; the byte at which number 1 begins; and the line.
    """
    with _open_lines(path) as (stream, file):
        compressed = stream is not file
        position, number = start, 0
        if start:
            file.seek(start - 1)
            position += _skip_line(stream) - 1
        first, counted = position, start
        while stop is None or position < stop:
            line = stream.readline(max_bytes + 1)
            if not line:
                break
            number += 1
            position += len(line)
            too_long = len(line) > max_bytes
            if too_long and not line.endswith(b"\n"):
                position += _skip_line(stream)
            place = file.tell() if compressed else position
            report.bytes_read += place - counted
            counted = place
            if number == 1 and not start:
                line = line.removeprefix(_BOM)
            if not line.strip():
                continue
            report.rows += 1
            if too_long:
                report.long_rows += 1
                continue
            yield number, first, line


def _skip_line(stream: BinaryIO) -> int:
    """Reads to the end of the line without keeping it; returns the bytes read."""
    skipped = 0
    while chunk := stream.readline(1 << 20):
        skipped += len(chunk)
        if chunk.endswith(b"\n"):
            break
    return skipped


@contextmanager
def _open_lines(path: Path) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """Opens a plain, ``.gz`` or ``.zst`` file.

    Yields:
        The decompressed stream, and the file itself, whose position tells how far reading has come.

    Raises:
        UserError: the file cannot be read, is cut short or damaged; also from inside the block.
    """
    damaged: tuple[type[Exception], ...] = (EOFError, zlib.error, gzip.BadGzipFile)
    if path.suffix == ".zst":
        from zstandard import ZstdError

        damaged = (*damaged, ZstdError)
    try:
        with path.open("rb") as file:
            if path.suffix == ".gz":
                with gzip.GzipFile(fileobj=file) as stream:
                    yield io.BufferedReader(stream, 1 << 20), file
            elif path.suffix == ".zst":
                yield io.BufferedReader(_ZstdReader(file), 1 << 20), file
            else:
                yield file, file
    except damaged as error:
        raise UserError(f"{path} is cut short or damaged ({error}); fetch it again") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


class _ZstdReader(io.RawIOBase):
    """Decompressed bytes of one or more zstd frames.

    zstandard's own stream ends quietly where a frame is cut off; this raises ``EOFError``.
    """

    def __init__(self, file: BinaryIO) -> None:
        from zstandard import ZstdDecompressor

        # Frames of the --long modes need windows beyond the default limit.
        self._new_frame = ZstdDecompressor(max_window_size=1 << 31).decompressobj
        self._file, self._ready = file, memoryview(b"")
        self._frame: Any = None  # of a type that zstandard does not export

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self._ready:
            compressed = self._file.read(_COMPRESSED_CHUNK)
            if not compressed:
                if self._frame is not None:
                    raise EOFError("the last frame is cut off")
                return 0
            frame = self._frame or self._new_frame()
            self._ready = memoryview(frame.decompress(compressed))
            self._frame = None if frame.eof else frame
            if frame.eof and frame.unused_data:  # the next frame is read on the next call
                self._file.seek(-len(frame.unused_data), io.SEEK_CUR)
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count


def _read_parquet(path: Path, start: int, stop: int | None, args: ReadingArgs, report: ReadReport) -> Rows:
    fields = [name for name in (args.text_field, args.domain_field) if name]
    with _open_parquet(path) as file:
        columns = [_column(file, path, name) for name in fields]
        sizes = _group_bytes(file)
        number = sum(file.metadata.row_group(group).num_rows for group in range(start))
        for group in range(start, len(sizes) if stop is None else stop):
            rows_in_group, before, first = file.metadata.row_group(group).num_rows, report.bytes_read, number
            for batch in file.iter_batches(_BATCH_ROWS, row_groups=[group], columns=columns):
                for row in _batch_rows(batch):
                    number += 1
                    report.rows += 1
                    report.bytes_read = before + sizes[group] * (number - first) // rows_in_group
                    try:
                        if isinstance(row, UnicodeError):
                            raise BrokenRow(f"not UTF-8 ({row.reason})")
                        text = string_field(row, args.text_field)
                        domain = string_field(row, args.domain_field) if args.domain_field else None
                    except BrokenRow as fault:
                        report.note_broken(number, 0, str(fault))
                        continue
                    if len(text) > args.max_document_bytes:
                        report.long_rows += 1
                        continue
                    yield text, domain


def row_group_bytes(path: Path) -> list[int]:
    """Returns the stored bytes of each row group of a parquet file.

    Raises:
        UserError: the file cannot be read.
    """
    with _open_parquet(path) as file:
        return _group_bytes(file)


def _group_bytes(file: "ParquetFile") -> list[int]:
    groups = map(file.metadata.row_group, range(file.metadata.num_row_groups))
    return [sum(group.column(n).total_compressed_size for n in range(group.num_columns)) for group in groups]


@contextmanager
def _open_parquet(path: Path) -> Iterator["ParquetFile"]:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            yield file
    except (ArrowException, OSError) as error:
        reason = first_line(error)
        raise UserError(f"{path} cannot be read as parquet ({reason}); fetch it again") from error


def _batch_rows(batch: "RecordBatch") -> Iterator[dict | UnicodeDecodeError]:
    """Yields the rows of a batch, or why one of them is not text: parquet does not force strings to be UTF-8."""
    try:
        yield from batch.to_pylist()
        return
    except UnicodeDecodeError:
        pass  # find out which
    for number in range(batch.num_rows):
        try:
            yield batch.slice(number, 1).to_pylist()[0]
        except UnicodeDecodeError as error:
            yield error


def _column(file: "ParquetFile", path: Path, name: str) -> str:
    """Returns the name of a top-level or nested column, checked."""
    import pyarrow as pa

    schema = file.schema_arrow
    nested = {file.schema.column(number).path for number in range(len(file.schema))}
    if name not in nested and name not in schema.names:
        have = ", ".join(schema.names)
        raise UserError(f"{path} has no column {name!r}, only {have}; name the one to use with --text_field")
    if name in schema.names:
        kind = schema.field(name).type
        values = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not (pa.types.is_string(values) or pa.types.is_large_string(values)):
            raise UserError(f"column {name!r} of {path} holds {kind}, not text; name another with --text_field")
    return name
