"""Tables as Markdown, and names that others chose in it; and the program's own tables."""

import csv
import re
from collections.abc import Sequence
from pathlib import Path

from inheritune_lit.errors import printable


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> str:
    """Returns a table, aligned right but for columns in ``left``; short rows have empty cells, and a cell stays one."""
    marks = ["---" if number in left else "--:" for number in range(len(header))]
    padded = [[*map(_cell, row), *[""] * (len(header) - len(row))] for row in (header, *rows)]
    first, *lines = [f"| {' | '.join(row)} |" for row in padded]
    return "\n".join([first, f"|{'|'.join(marks)}|", *lines])


def own_table(module: str) -> list[dict[str, str]]:
    """Returns the rows of the CSV file beside a module, whose ``__file__`` is given, by the names of its first line."""
    with Path(module).with_suffix(".csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def plain(name: str) -> str:
    """Returns a name as Markdown that shows it as it is: no markup, HTML or control characters."""
    marked = re.sub(r"([\\`*\[\]#!]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))", r"\\\1", printable(name))
    return marked.replace("&", "&amp;").replace("<", "&lt;")


def _cell(text: str) -> str:
    return re.sub(r"(?<!\\)\|", r"\\|", printable(text))
