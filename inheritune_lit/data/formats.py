"""Formats of source files: jsonl and text, plain or compressed, and parquet."""

import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

from inheritune_lit.data.args import ReadingArgs
from inheritune_lit.data.documents import BROKEN_ROW, NoText, ReadReport, string_field
from inheritune_lit.errors import UserError, first_line

if TYPE_CHECKING:
    from pyarrow import RecordBatch
    from pyarrow.parquet import ParquetFile

Row = tuple[str, str | None]
"""Text and domain; the domain is None where rows do not name theirs."""

_COMPRESSIONS = (".gz", ".zst")
_COMPRESSED_CHUNK = 1 << 14  # what these bytes expand to is held in memory
_BOM = b"\xef\xbb\xbf"
_BATCH_ROWS = 256


@dataclass(frozen=True)
class FileFormat:
    """How files of a kind are read; ``ranges`` says what a part of one is counted in, None where it is read whole."""

    read: Callable[[Path, ReadingArgs, ReadReport, int, int | None], Iterator[Row]]  # see ``read_rows``
    ranges: Literal["bytes", "row groups"] | None
    text_share: float  # bytes of text per stored byte, roughly


def format_of(name: str, args: ReadingArgs) -> FileFormat | None:
    """Returns the format of a file, or None for a file that holds no corpus.

    ``.jsonl`` and ``.json`` (a row per line), ``.txt``, each also with ``.gz`` or ``.zst``; ``.parquet``.
    """
    plain = not name.endswith(_COMPRESSIONS)
    stem = name if plain else name.rpartition(".")[0]
    lines = partial(FileFormat, ranges="bytes" if plain else None, text_share=0.9 if plain else 2.5)
    if stem.endswith((".jsonl", ".json")):
        return lines(partial(_read_lines, _json_row))
    if stem.endswith(".txt"):
        return lines(partial(_read_lines, _text_row)) if args.txt_documents == "line" else lines(_read_txt, ranges=None)
    return FileFormat(_read_parquet, "row groups", 1.7) if name.endswith(".parquet") else None


def stem_of(name: str) -> str:
    """Returns a file's name without the endings that tell its format."""
    for ending in (*_COMPRESSIONS, ".jsonl", ".json", ".txt", ".parquet"):
        name = name.removesuffix(ending)
    return name


def read_rows(
    path: Path, args: ReadingArgs, report: ReadReport, start: int = 0, stop: int | None = None
) -> Iterator[Row]:
    """Yields the rows of a file of a known format, and counts them in the report on the way.

    They are those from position ``start`` to before ``stop`` (None for the end), which count what the format's
    ``ranges`` says. A file that cannot be read, is cut short or damaged is a ``UserError``.
    """
    kind = format_of(path.name, args)
    assert kind is not None, path
    return kind.read(path, args, report, start, stop)


def _json_row(line: bytes, args: ReadingArgs) -> Row:
    content = line.decode("utf-8")
    try:
        row = json.loads(content)
    except (ValueError, RecursionError) as error:  # the latter for brackets nested too deeply
        raise NoText(f"not JSON ({error})") from None
    domain = string_field(row, args.domain_field) if args.domain_field else None
    text = string_field(row, args.text_field)
    if b"\\u" in line:
        text.encode("utf-8")  # raises for half a surrogate pair, which JSON can spell and no tokenizer can hold
    return text, domain


def _text_row(line: bytes, args: ReadingArgs) -> Row:
    return line.rstrip(b"\r\n").decode("utf-8"), None


def _read_lines(
    parse: Callable[[bytes, ReadingArgs], Row],
    path: Path,
    args: ReadingArgs,
    report: ReadReport,
    start: int,
    stop: int | None,
) -> Iterator[Row]:
    """Reads the lines that begin in a range of bytes and are neither blank nor too long."""
    limit = args.max_document_bytes
    with _open_lines(path) as (stream, file):
        position, number = start, 0
        if start:
            file.seek(start - 1)
            position += _skip_line(stream) - 1
        first, counted = position, start
        while (stop is None or position < stop) and (line := stream.readline(limit + 1)):
            number += 1
            position += len(line)
            too_long = len(line) > limit
            if too_long and not line.endswith(b"\n"):
                position += _skip_line(stream)
            place = position if stream is file else file.tell()
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
            try:
                yield parse(line, args)
            except BROKEN_ROW as error:
                report.note_broken(number, first, error)


def _read_txt(path: Path, args: ReadingArgs, report: ReadReport, start: int, stop: int | None) -> Iterator[Row]:
    """Reads a file that is one document."""
    with _open_lines(path) as (stream, file):
        content = stream.read(args.max_document_bytes + 1)
        report.bytes_read += file.tell()
    report.rows += 1
    if len(content) > args.max_document_bytes:
        report.long_rows += 1
        return
    try:
        yield content.removeprefix(_BOM).decode("utf-8"), None
    except UnicodeDecodeError as error:
        report.note_broken(1 + content[: error.start].count(b"\n"), 0, error)


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
    """Yields a file's decompressed stream, and the file itself, whose position tells how far reading has come."""
    from zstandard import ZstdError

    try:
        with path.open("rb") as file:
            if path.suffix == ".gz":
                yield io.BufferedReader(gzip.GzipFile(fileobj=file), 1 << 20), file
            elif path.suffix == ".zst":
                yield io.BufferedReader(_ZstdReader(file), 1 << 20), file
            else:
                yield file, file
    except (EOFError, zlib.error, gzip.BadGzipFile, ZstdError) as error:
        raise UserError(f"{path} is cut short or damaged ({error}); fetch it again") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


class _ZstdReader(io.RawIOBase):
    """Decompressed bytes of zstd frames; unlike zstandard's own stream, a frame that is cut off is an ``EOFError``."""

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


def _read_parquet(path: Path, args: ReadingArgs, report: ReadReport, start: int, stop: int | None) -> Iterator[Row]:
    with open_parquet(path) as file:
        columns = [_column(file, path, name) for name in (args.text_field, args.domain_field) if name]
        sizes = row_group_bytes(file)
        number = sum(file.metadata.row_group(group).num_rows for group in range(start))
        for group in range(start, len(sizes) if stop is None else stop):
            rows_in_group, before, first = file.metadata.row_group(group).num_rows, report.bytes_read, number
            for batch in file.iter_batches(_BATCH_ROWS, row_groups=[group], columns=columns):
                for row in _batch_rows(batch):
                    number += 1
                    report.rows += 1
                    report.bytes_read = before + sizes[group] * (number - first) // rows_in_group
                    try:
                        if isinstance(row, UnicodeDecodeError):
                            raise row
                        text = string_field(row, args.text_field)
                        domain = string_field(row, args.domain_field) if args.domain_field else None
                        if len(text) <= args.max_document_bytes:
                            yield text, domain
                        else:
                            report.long_rows += 1
                    except BROKEN_ROW as error:
                        report.note_broken(number, 0, error)


def row_group_bytes(file: "ParquetFile") -> list[int]:
    """Returns the stored bytes of each row group."""
    groups = map(file.metadata.row_group, range(file.metadata.num_row_groups))
    return [sum(group.column(n).total_compressed_size for n in range(group.num_columns)) for group in groups]


@contextmanager
def open_parquet(path: Path) -> Iterator["ParquetFile"]:
    """Opens a parquet file; whatever cannot be read in it, also inside the block, is a ``UserError``."""
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            yield file
    except (ArrowException, OSError) as error:
        raise UserError(f"{path} cannot be read as parquet ({first_line(error)}); fetch it again") from error


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
    if name in schema.names:
        kind = schema.field(name).type
        values = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not (pa.types.is_string(values) or pa.types.is_large_string(values)):
            raise UserError(f"column {name!r} of {path} holds {kind}, not text; name another with --text_field")
    elif name not in {file.schema.column(number).path for number in range(len(file.schema))}:
        have = ", ".join(schema.names)
        raise UserError(f"{path} has no column {name!r}, only {have}; name the one to use with --text_field")
    return name
