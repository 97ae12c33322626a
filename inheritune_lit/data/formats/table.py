"""Which reader a file's name calls for."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from inheritune_lit.data.args import ReadingArgs
from inheritune_lit.data.formats.parquet import read_parquet
from inheritune_lit.data.formats.report import ReadReport
from inheritune_lit.data.formats.text import read_jsonl, read_txt_file, read_txt_lines

Reader = Callable[[Path, int, int | None, ReadingArgs, ReadReport], Iterator[tuple[str, str | None]]]

_PACKED = (".gz", ".zst")


@dataclass(frozen=True)
class FileFormat:
    """How files of a kind are read.

    Attributes:
        read: yields a text and a domain for each row.
        ranges: what a part of such a file is counted in; None where it is read whole.
        text_share: bytes of text a stored byte, roughly.
    """

    read: Reader
    ranges: str | None
    text_share: float


def format_of(name: str, args: ReadingArgs) -> FileFormat | None:
    """The format of a file, or None for a file that holds no corpus.

    ``.jsonl`` and ``.json`` (a row a line), ``.txt``, each also with ``.gz`` or ``.zst``; ``.parquet``.
    """
    stem = name
    for ending in _PACKED:
        stem = stem.removesuffix(ending)
    plain = stem == name
    text_share = 0.9 if plain else 2.5
    if stem.endswith((".jsonl", ".json")):
        return FileFormat(read_jsonl, "bytes" if plain else None, text_share)
    if stem.endswith(".txt"):
        if args.txt_documents == "line":
            return FileFormat(read_txt_lines, "bytes" if plain else None, text_share)
        return FileFormat(read_txt_file, None, text_share)
    if name.endswith(".parquet"):
        return FileFormat(read_parquet, "row groups", 1.7)
    return None


def stem_of(name: str) -> str:
    """A file's name without the endings that tell its format."""
    for ending in (*_PACKED, ".jsonl", ".json", ".txt", ".parquet"):
        name = name.removesuffix(ending)
    return name
