"""From a row to its text and domain."""

import json
from typing import Any


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
