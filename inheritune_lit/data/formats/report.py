"""What was met while reading rows."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from inheritune_lit.errors import UserError

MAX_BROKEN_SHARE = 0.01
"""Share of a file's rows that may be broken."""


@dataclass
class Fault:
    """Where a row is broken, and how.

    Attributes:
        line: its number, counting from 1 at ``start``.
        start: byte of the file at which lines were counted from; 0 for formats that are never read from the middle.
        reason: what is wrong.
    """

    line: int
    start: int
    reason: str


@dataclass
class ReadReport:
    """Counts over the rows of a file or a part of one.

    Attributes:
        rows: rows that are not blank lines.
        bytes_read: bytes of the file consumed, as stored.
        empty: documents whose text is empty, only white space, or gives no token; they are left out.
        broken: rows that are no UTF-8, no JSON object, or lack a string text; they are left out.
        too_long: rows longer than the limit, or too long to encode in bounded memory; they are left out.
        first_broken: the first broken row.
    """

    rows: int = 0
    bytes_read: int = 0
    empty: int = 0
    broken: int = 0
    too_long: int = 0
    first_broken: Fault | None = None

    def note_broken(self, line: int, start: int, reason: str) -> None:
        """Count a broken row."""
        self.broken += 1
        self.first_broken = self.first_broken or Fault(line, start, reason)

    def add(self, other: "ReadReport") -> None:
        """Add the counts of a later part of the same file."""
        for name in ("rows", "bytes_read", "empty", "broken", "too_long"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.first_broken = self.first_broken or other.first_broken

    def to_record(self) -> dict[str, Any]:
        """As plain values for a JSON file."""
        return asdict(self)

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> "ReadReport":
        """What ``to_record`` gave."""
        fault = record["first_broken"]
        return cls(**{**record, "first_broken": Fault(**fault) if fault else None})


def check_broken(path: str, report: ReadReport) -> None:
    """Refuse a file with too many broken rows.

    Raises:
        UserError: it has.
    """
    if report.broken > MAX_BROKEN_SHARE * report.rows:
        raise UserError(
            f"{report.broken} of {report.rows} rows of {path} are broken, first {first_broken(path, report)}; "
            f"fix the file (up to {MAX_BROKEN_SHARE:.0%} are tolerated)"
        )


def first_broken(path: str, report: ReadReport) -> str:
    """Returns file, line and fault of the first broken row."""
    fault = report.first_broken
    assert fault is not None
    before = _count_lines(Path(path), fault.start) if fault.start else 0
    return f"{path.removeprefix('hf://datasets/')}:{before + fault.line}: {fault.reason}"


def _count_lines(path: Path, stop: int) -> int:
    """Returns the number of line breaks before a byte of a plain file."""
    lines, left = 0, stop
    with path.open("rb") as file:
        while left and (chunk := file.read(min(left, 1 << 22))):
            lines += chunk.count(b"\n")
            left -= len(chunk)
    return lines


class BrokenRow(Exception):
    """A row without a usable text; the message says why."""


def parse_json(line: bytes) -> Any:
    """The value of a line of JSON.

    Raises:
        BrokenRow: the line is no UTF-8 or no JSON.
    """
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise BrokenRow(f"no UTF-8 ({error.reason})") from None
    except (ValueError, RecursionError) as error:  # the latter for brackets nested too deeply
        raise BrokenRow(f"no JSON ({error})") from None


def string_field(row: Any, path: str) -> str:
    """A string in a row; dots in ``path`` lead into nested objects.

    Raises:
        BrokenRow: there is no such field, or it holds no text.
    """
    value = row
    for name in [path] if isinstance(row, dict) and path in row else path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    if not isinstance(value, str):
        raise BrokenRow(f'no string field "{path}"')
    return value


def check_text(text: str) -> None:
    """Refuse half a surrogate pair, which JSON can spell and no UTF-8 text and no tokenizer can hold.

    Raises:
        BrokenRow: the text has one.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BrokenRow(f"no UTF-8 ({error.reason})") from None
