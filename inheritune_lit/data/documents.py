"""Documents in the rows of source files: their text, the hashes that decide where they go, and what is left out."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inheritune_lit.errors import UserError

ROW_COUNTS = ("rows", "empty_rows", "broken_rows", "long_rows")
"""Counts of a ``ReadReport`` that the manifest keeps."""
_MAX_BROKEN_SHARE = 0.01


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

    def note_broken(self, line: int, start: int, error: Exception) -> None:
        """Counts a broken row; its first line and ``start`` are as in ``Fault``, the error is a ``BROKEN_ROW``."""
        self.broken_rows += 1
        reason = str(error)
        if isinstance(error, UnicodeDecodeError | UnicodeEncodeError):
            reason = f"not UTF-8 ({error.reason})"
        if isinstance(error, UnicodeDecodeError):
            line += error.object[: error.start].count(b"\n")
        self.first_broken = self.first_broken or Fault(line, start, reason)

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


class NoText(Exception):
    """A row without a usable text; the message says why."""


_CONTROLS = bytes({*range(32), 127} - set(b"\b\t\n\v\f\r\x1b"))
BROKEN_ROW = (NoText, UnicodeDecodeError, UnicodeEncodeError)
"""What reading a broken row raises."""


def string_field(row: Any, path: str) -> str:
    """Returns a string in a row, where dots in ``path`` lead into nested objects; raises ``NoText`` without one."""
    value = row
    for name in [path] if isinstance(row, dict) and path in row else path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    if not isinstance(value, str):
        raise NoText(f'no string field "{path}"')
    return value


def check_text(text: str) -> str:
    """Returns a text; raises a ``BROKEN_ROW`` for half a surrogate pair, and for what is plainly not text.

    That is one with many control characters, such as UTF-16 without its mark, or bytes taken for characters.
    """
    content = text.encode("utf-8")
    if 5 * (len(content) - len(content.translate(None, _CONTROLS))) > len(content):
        raise NoText("not text, it is full of control characters")
    return text


def is_validation(text: str, val_fraction: float) -> bool:
    """Returns whether a document belongs to the validation split.

    The first eight bytes of its SHA-256, read as a number in [0, 1), are compared with the fraction. So the split never
    changes when documents are added, moved or reordered; exact duplicates land on the same side; and a larger fraction
    only adds documents.
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
