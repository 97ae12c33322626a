"""Documents in lines: jsonl and, on request, txt."""

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from inheritune_lit.data.formats.compressed import open_lines
from inheritune_lit.data.formats.report import ReadReport
from inheritune_lit.data.formats.rows import BrokenRow, check_text, parse_json, string_field
from inheritune_lit.data.options import PrepareOptions

_BOM = b"\xef\xbb\xbf"


def read_jsonl(
    path: Path, start: int, stop: int | None, options: PrepareOptions, report: ReadReport
) -> Iterator[tuple[str, str | None]]:
    """Texts and domains (None where the rows don't name them) of a jsonl file, or of the lines that begin in a range.

    Args:
        path: plain, ``.gz`` or ``.zst``.
        start: first byte of the range; 0 unless the file is plain.
        stop: byte after the range; None for the whole file.
        options: names of fields, and the longest row.
        report: brought up to date on the way.

    Raises:
        UserError: the file cannot be read.
    """
    for number, first, line in _read_lines(path, start, stop, options.max_document_bytes, report):
        try:
            row = parse_json(line)
            domain = string_field(row, options.domain_field) if options.domain_field else None
            text = string_field(row, options.text_field)
            if b"\\u" in line:
                check_text(text)
            yield text, domain
        except BrokenRow as fault:
            report.note_broken(number, first, str(fault))


def read_txt_lines(
    path: Path, start: int, stop: int | None, options: PrepareOptions, report: ReadReport
) -> Iterator[tuple[str, None]]:
    """Each line of a text file as a document, without its line break; see ``read_jsonl``."""
    for number, first, line in _read_lines(path, start, stop, options.max_document_bytes, report):
        try:
            yield line.rstrip(b"\r\n").decode("utf-8"), None
        except UnicodeDecodeError as error:
            report.note_broken(number, first, f"no UTF-8 ({error.reason})")


def read_txt_file(
    path: Path, start: int, stop: int | None, options: PrepareOptions, report: ReadReport
) -> Iterator[tuple[str, None]]:
    """A text file as one document; see ``read_jsonl``."""
    with open_lines(path) as (stream, file):
        content = stream.read(options.max_document_bytes + 1)
        report.bytes_read += file.tell()
    report.rows += 1
    if len(content) > options.max_document_bytes:
        report.too_long += 1
        return
    try:
        text = content.removeprefix(_BOM).decode("utf-8")
    except UnicodeDecodeError as error:
        report.note_broken(1 + content[: error.start].count(b"\n"), 0, f"no UTF-8 ({error.reason})")
        return
    yield text, None


def count_lines(path: Path, stop: int) -> int:
    """Line breaks before a byte of a plain file."""
    lines, left = 0, stop
    with path.open("rb") as file:
        while left and (chunk := file.read(min(left, 1 << 22))):
            lines += chunk.count(b"\n")
            left -= len(chunk)
    return lines


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
