"""LogiQA: its hub data set needs a loading script, which the data library refuses, so the script's work is here."""

import re
from pathlib import Path
from typing import Any

from inheritune_lit.errors import UserError

SPLITS = {"test": "Test.txt", "validation": "Eval.txt", "train": "Train.txt"}
"""Files of the original release by split."""
_LETTERS = "abcd"
_RAW = re.compile(r"\.[^ ]")


def parse(path: Path) -> list[dict[str, Any]]:
    """Rows of an original text file: blocks of label, context, question and four options, a blank line between.

    Raises:
        UserError: a block has another shape.
    """
    rows = []
    blocks = [block.splitlines() for block in re.split(r"\n\s*\n", path.read_text(encoding="utf-8").strip())]
    for number, lines in enumerate(blocks, start=1):
        if len(lines) != 7 or lines[0].strip() not in _LETTERS:
            raise UserError(f"{path}: block {number} is not label, context, question and four options; copy it again")
        label, context, question, *options = lines
        rows.append({"label": label.strip(), "context": context, "question": question, "options": options})
    return normalise(rows)


def normalise(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows as lm-eval's data set has them, which has a blank after every full stop; rows that have are left alone."""
    texts = [text for row in rows for text in (row["context"], row["question"], *row["options"])]
    if not any(_RAW.search(text) for text in texts):
        return rows
    return [
        {
            **row,
            "context": _spaced(row["context"]),
            "question": _spaced(row["question"]),
            "options": [_spaced(option) for option in row["options"]],
        }
        for row in rows
    ]


def _spaced(text: str) -> str:
    return text.replace(".", ". ").strip()
