"""Documents in source files of every format, the hashes that decide where they go, and what is left out."""

import codecs
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO, Literal

from inheritune_lit.data import containers
from inheritune_lit.data.args import ReadingArgs
from inheritune_lit.errors import UserError, first_line

Row = tuple[str, str | None]  # text and domain; the domain is None where rows do not name theirs
Rows = Iterator[Row]
Parse = Callable[[Any, ReadingArgs], Row]

READ = f".jsonl, .ndjson, .json, .txt (each also with {', '.join(containers.COMPRESSIONS)}) or .parquet"
"""Endings that are read, upper or lower case."""
_JSON = (".jsonl", ".ndjson", ".json")
_BOM = b"\xef\xbb\xbf"
_BINARY_CHARACTERS = 8000
ROW_COUNTS = ("rows", "empty_rows", "broken_rows", "long_rows")  # counts of a ``ReadReport`` that the manifest keeps
_MAX_BROKEN_SHARE = 0.01
_CONTROLS = bytes({*range(32), 127} - set(b"\b\t\n\v\f\r\x1b"))


@dataclass(frozen=True)
class Fault:
    """What is wrong with a row, and its line: counted from 1 at a byte of the file, ``start``."""

    line: int
    start: int
    reason: str


@dataclass
class ReadReport:
    """Counts over the rows of a file or a part of one."""

    rows: int = 0  # that are not blank lines
    empty_rows: int = 0  # left out because the text is empty, only white space, or gives no token
    broken_rows: int = 0  # left out because they are not UTF-8 or not a JSON object, or lack a string text
    long_rows: int = 0  # left out because they are over the limit, or too long to encode in bounded memory
    bytes_read: int = 0  # of the file, as stored
    texts: int = 0  # sum of hashes of what is packed, whatever the order
    first_broken: Fault | None = None

    def note_text(self, text: str) -> None:
        """Adds a text to the sum that tells whether two files hold the same ones."""
        self.texts += int.from_bytes(_digest(text)[-8:], "big")

    def add(self, other: "ReadReport") -> None:
        """Adds the counts of a later part of the same file."""
        for name in (*ROW_COUNTS, "bytes_read", "texts"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.first_broken = self.first_broken or other.first_broken

    def check(self, path: str) -> None:
        """Raises a ``UserError`` for a file with too many broken rows."""
        if self.broken_rows > _MAX_BROKEN_SHARE * self.rows:
            advice = f"fix the file (up to {_MAX_BROKEN_SHARE:.0%} are tolerated)"
            raise UserError(f"{self.describe_broken(path)}; {advice}")

    def describe_broken(self, path: str) -> str:
        """Returns how many rows are broken, and line and fault of the first."""
        fault = self.first_broken
        assert fault is not None
        line, left = fault.line, fault.start
        if left:  # only in plain files; in others lines are counted from the beginning
            with Path(path).open("rb") as file:
                while left and (chunk := file.read(min(left, 1 << 22))):
                    line += chunk.count(b"\n")
                    left -= len(chunk)
        first = f"{path.removeprefix('hf://datasets/')}:{line}: {fault.reason}"
        return f"{self.broken_rows} of {self.rows} rows of {path} are broken, first {first}"


class _NoText(Exception):
    """A row without a usable text; the message says why."""


def _string_field(row: Any, path: str) -> str:
    """Returns a string in a row, where dots in ``path`` lead into nested objects."""
    value = row
    for name in [path] if isinstance(row, dict) and path in row else path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    if not isinstance(value, str):
        raise _NoText(f'no string field "{path}"')
    return value


def _check_text(text: str) -> str:
    """Refuses half a surrogate pair, and many control characters, as of UTF-16 without its mark or of other bytes."""
    content = text.encode("utf-8")
    if 5 * (len(content) - len(content.translate(None, _CONTROLS))) > len(content):
        raise _NoText("not text, it is full of control characters")
    return text


def is_validation(text: str, val_fraction: float) -> bool:
    """Returns whether a document is for validation: the first eight bytes of its SHA-256 are below the fraction.

    So the split stays when documents come or move, duplicates land on one side, and a larger fraction only adds some.
    """
    return int.from_bytes(_digest(text)[:8], "big") < val_fraction * 2**64


def sample_key(text: str, seed: int) -> int:
    """Returns a number below 2^64, uniform over documents and independent of the split; a subset takes the smallest."""
    return int.from_bytes(hashlib.blake2b(_digest(text), digest_size=8, salt=seed.to_bytes(8, "big")).digest(), "big")


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8")).digest()


def ids_hash(ids: bytes) -> bytes:
    """Returns a 128-bit hash of a document's token ids; documents with equal ones are duplicates."""
    return hashlib.blake2b(ids, digest_size=16).digest()


@dataclass(frozen=True)
class FileFormat:
    """How files of a kind are read; ``ranges`` says what a part of one is counted in, None where it is read whole."""

    read: Callable[[Path, ReadingArgs, ReadReport, int, int | None], Rows]  # see ``read_rows``
    ranges: Literal["bytes", "row groups"] | None
    text_share: float  # bytes of text per stored byte, roughly


def format_of(name: str, args: ReadingArgs) -> FileFormat | None:
    """Returns the format of a file, or None for a file that holds no corpus (see ``READ``)."""
    name = name.lower()
    plain = not name.endswith(containers.COMPRESSIONS)
    stem = name if plain else name.rpartition(".")[0]
    lines = partial(FileFormat, ranges="bytes" if plain else None, text_share=0.9 if plain else 2.5)
    if stem.endswith(_JSON):
        return lines(partial(_read_lines, _json_row))
    if stem.endswith(".txt"):
        return lines(partial(_read_lines, _text_row)) if args.txt_documents == "line" else lines(_read_txt, ranges=None)
    return FileFormat(_read_parquet, "row groups", 1.7) if name.endswith(".parquet") else None


def stem_of(name: str) -> str:
    """Returns a file's name without the endings that tell its format."""
    for ending in (*containers.COMPRESSIONS, *_JSON, ".txt", ".parquet"):
        if name.lower().endswith(ending):
            name = name[: -len(ending)]
    return name


def read_rows(path: Path, args: ReadingArgs, report: ReadReport, start: int = 0, stop: int | None = None) -> Rows:
    """Yields the rows of a file, and counts them in the report on the way; a damaged file is a ``UserError``.

    They are those from position ``start`` to before ``stop`` (None: the end), counted as the format's ``ranges`` says.
    """
    kind = format_of(path.name, args)
    assert kind is not None, path
    return kind.read(path, args, report, start, stop)


def _fields(row: Any, args: ReadingArgs) -> Row:
    domain = _string_field(row, args.domain_field) if args.domain_field else None
    return _check_text(_string_field(row, args.text_field)), domain


def _json_row(line: bytes, args: ReadingArgs) -> Row:
    content = line.decode("utf-8")
    try:
        row = json.loads(content)
    except (ValueError, RecursionError) as error:  # the latter for brackets nested too deeply
        raise _NoText(f"not JSON ({error})") from None
    return _fields(row, args)


def _text_row(line: bytes, args: ReadingArgs) -> Row:
    return _raw_row(line.rstrip(b"\r\n"), args)


def _raw_row(content: bytes, args: ReadingArgs) -> Row:
    text = content.decode("utf-8")
    if "\0" in text[:_BINARY_CHARACTERS]:  # what git and grep call binary
        raise _NoText("not text, it has NUL characters")
    return _check_text(text), None


def _parquet_row(row: dict[str, Any] | UnicodeDecodeError, args: ReadingArgs) -> Row:
    if isinstance(row, UnicodeDecodeError):
        raise _NoText(f"not UTF-8 ({row.reason})")
    return _fields(row, args)


def _counted(
    parse: Parse, content: Any, size: int, args: ReadingArgs, report: ReadReport, line: int, start: int = 0
) -> Rows:
    """Yields what ``parse`` makes of a row of ``size`` bytes, and counts it; nothing where it is too long or broken."""
    report.rows += 1
    if size > args.max_document_bytes:
        report.long_rows += 1
        return
    try:
        yield parse(content, args)
    except (_NoText, UnicodeDecodeError, UnicodeEncodeError) as error:
        report.broken_rows += 1
        reason = str(error) if isinstance(error, _NoText) else f"not UTF-8 ({error.reason})"
        if isinstance(error, UnicodeDecodeError):
            line += error.object[: error.start].count(b"\n")
        report.first_broken = report.first_broken or Fault(line, start, reason)


def _read_lines(parse: Parse, path: Path, args: ReadingArgs, report: ReadReport, start: int, stop: int | None) -> Rows:
    """Reads the lines that begin in a range of bytes and are not blank."""
    limit = args.max_document_bytes
    with containers.open_bytes(path) as (stream, file):
        if parse is _json_row and _begins_array(stream):
            if not start:  # whoever has the beginning reads it all
                yield from _read_array(path, stream, file, args, report)
            return
        position, number = start, 0
        if start:
            file.seek(start - 1)
            position += _skip_line(stream) - 1
        first = position
        while (stop is None or position < stop) and (line := stream.readline(limit + 1)):
            number, size = number + 1, len(line)
            position += size
            if size > limit and not line.endswith(b"\n"):
                position += _skip_line(stream)
            report.bytes_read = (position if stream is file else file.tell()) - start
            if number == 1 and not start:
                line = line.removeprefix(_BOM)
            if line.strip():
                yield from _counted(parse, line, size, args, report, number, first)


def _begins_array(stream: BufferedReader) -> bool:
    """Whether a file is one array of objects, not an object per line."""
    head = stream.peek(1).removeprefix(_BOM).lstrip()
    return head.startswith(b"[") and head[1:].lstrip()[:1] in (b"{", b"]", b"")


def _read_array(path: Path, stream: BinaryIO, file: BinaryIO, args: ReadingArgs, report: ReadReport) -> Rows:
    """Reads the objects of an array, in memory that depends on the longest of them only."""
    decode = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape").decode
    parse, content, place, before = json.JSONDecoder().raw_decode, "", 0, "["

    def more() -> bool:
        nonlocal content, place
        some = stream.read(max(1 << 16, len(content) - place))
        content, place = content[place:].lstrip() + decode(some, final=not some), 0
        report.bytes_read = file.tell()
        return bool(some)

    def next_sign() -> str:
        nonlocal place
        while not (rest := content[place : place + 64].lstrip()):
            place = min(place + 64, len(content))
            if place == len(content) and not more():
                raise UserError(f"{path} is cut short: its array has no end; fetch it again")
        place = content.index(rest[0], place)
        return rest[0]

    while (sign := next_sign()) != "]" or before == "[":
        if sign != before:
            raise UserError(f"{path} is not JSON: row {report.rows + 1} follows {sign!r}, not {before!r}; fix the file")
        place += 1
        if next_sign() == "]" and before == "[":
            return
        before = ","
        while True:
            try:
                row, end = parse(content, place)
                if end < len(content) or not more():
                    break
            except (ValueError, RecursionError) as error:
                if len(content) - place > args.max_document_bytes or not more():
                    problem = f"{path}: row {report.rows + 1} of its array is not JSON, or over --max_document_bytes"
                    raise UserError(f"{problem} ({first_line(error)}); fix the file") from error
        size, place = len(content[place:end].encode("utf-8", "surrogateescape")), end
        yield from _counted(_fields, row, size, args, report, report.rows + 1)


def _read_txt(path: Path, args: ReadingArgs, report: ReadReport, start: int, stop: int | None) -> Rows:
    """Reads a file that is one document."""
    with containers.open_bytes(path) as (stream, file):
        content = stream.read(args.max_document_bytes + 1)
        report.bytes_read = file.tell()
    yield from _counted(_raw_row, content.removeprefix(_BOM), len(content), args, report, 1)


def _skip_line(stream: BinaryIO) -> int:
    """Reads to the end of the line without keeping it; returns the bytes read."""
    skipped = 0
    while chunk := stream.readline(1 << 20):
        skipped += len(chunk)
        if chunk.endswith(b"\n"):
            break
    return skipped


def _read_parquet(path: Path, args: ReadingArgs, report: ReadReport, start: int, stop: int | None) -> Rows:
    with containers.open_parquet(path) as file:
        columns = [containers.text_column(file, path, name) for name in (args.text_field, args.domain_field) if name]
        sizes = containers.row_group_bytes(file)
        number = sum(file.metadata.row_group(group).num_rows for group in range(start))
        for group in range(start, len(sizes) if stop is None else stop):
            rows_in_group, before, first = file.metadata.row_group(group).num_rows, report.bytes_read, number
            for row in containers.group_rows(file, path, group, columns):
                number += 1
                report.bytes_read = before + sizes[group] * (number - first) // max(1, rows_in_group)
                for text, domain in _counted(_parquet_row, row, 0, args, report, number):
                    if len(text.encode()) <= args.max_document_bytes:
                        yield text, domain
                    else:
                        report.long_rows += 1
