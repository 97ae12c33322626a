"""Compressed files as streams that notice when they are cut short."""

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from inheritune_lit.data.args import ReadingArgs
from inheritune_lit.data.formats.report import BrokenRow, ReadReport, check_text, parse_json, string_field
from inheritune_lit.errors import UserError

_CHUNK = 1 << 14  # of compressed bytes: what one of them expands to is held in memory


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
        compressed = b""
        while not self._ready:
            compressed = compressed or self._file.read(_CHUNK)
            if not compressed:
                if self._frame is not None:
                    raise EOFError("the last frame is cut off")
                return 0
            frame = self._frame or self._new_frame()
            self._ready = memoryview(frame.decompress(compressed))
            compressed = frame.unused_data if frame.eof else b""
            self._frame = None if frame.eof else frame
            if compressed:  # the next frame is read on the next call
                self._file.seek(-len(compressed), io.SEEK_CUR)
                compressed = b""
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count


@contextmanager
def open_lines(path: Path) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """Open a plain, ``.gz`` or ``.zst`` file.

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


_BOM = b"\xef\xbb\xbf"


def read_jsonl(
    path: Path, start: int, stop: int | None, args: ReadingArgs, report: ReadReport
) -> Iterator[tuple[str, str | None]]:
    """Texts and domains (None where the rows don't name them) of a jsonl file, or of the lines that begin in a range.

    Args:
        path: plain, ``.gz`` or ``.zst``.
        start: first byte of the range; 0 unless the file is plain.
        stop: byte after the range; None for the whole file.
        args: names of fields, and the longest row.
        report: brought up to date on the way.

    Raises:
        UserError: the file cannot be read.
    """
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


def read_txt_lines(
    path: Path, start: int, stop: int | None, args: ReadingArgs, report: ReadReport
) -> Iterator[tuple[str, None]]:
    """Each line of a text file as a document, without its line break; see ``read_jsonl``."""
    for number, first, line in _read_lines(path, start, stop, args.max_document_bytes, report):
        try:
            yield line.rstrip(b"\r\n").decode("utf-8"), None
        except UnicodeDecodeError as error:
            report.note_broken(number, first, f"no UTF-8 ({error.reason})")


def read_txt_file(
    path: Path, start: int, stop: int | None, args: ReadingArgs, report: ReadReport
) -> Iterator[tuple[str, None]]:
    """A text file as one document; see ``read_jsonl``."""
    with open_lines(path) as (stream, file):
        content = stream.read(args.max_document_bytes + 1)
        report.bytes_read += file.tell()
    report.rows += 1
    if len(content) > args.max_document_bytes:
        report.too_long += 1
        return
    try:
        text = content.removeprefix(_BOM).decode("utf-8")
    except UnicodeDecodeError as error:
        report.note_broken(1 + content[: error.start].count(b"\n"), 0, f"no UTF-8 ({error.reason})")
        return
    yield text, None


def _read_lines(
    path: Path, start: int, stop: int | None, max_bytes: int, report: ReadReport
) -> Iterator[tuple[int, int, bytes]]:
    """Lines that are neither blank nor too long: number, from 1; the byte at which number 1 begins; content."""
    with open_lines(path) as (stream, file):
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
                report.too_long += 1
                continue
            yield number, first, line


def _skip_line(stream: BinaryIO) -> int:
    """Read to the end of the line without keeping it; return the bytes read."""
    skipped = 0
    while chunk := stream.readline(1 << 20):
        skipped += len(chunk)
        if chunk.endswith(b"\n"):
            break
    return skipped
