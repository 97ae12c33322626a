"""Results as dataclasses, to JSON and back: what does not fit is refused by its name."""

import json
import math
from contextlib import suppress
from dataclasses import MISSING, asdict, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from inheritune_lit.errors import UserError
from inheritune_lit.io.folders import replace_text
from inheritune_lit.io.reading import AGAIN, read_json

Record = TypeVar("Record")


def write_record(path: Path, record: Any) -> None:
    """Writes a dataclass as JSON, whole or not at all; a number that is not finite becomes null."""
    replace_text(path, json.dumps(without_nan(asdict(record)), indent=1, allow_nan=False, default=Path.as_posix) + "\n")


def read_record(path: Path, kind: type[Record], what: str, remedy: str, others: bool = False) -> Record:
    """Reads what ``write_record`` wrote; a file that is missing or has other values is a ``UserError``."""
    return to_record(read_json(path, what, remedy), kind, path, what, remedy, others)


def to_record(
    content: Any, kind: type[Record], path: Path, what: str, remedy: str = AGAIN, others: bool = False
) -> Record:
    """Returns what was read from a file as a dataclass; a union takes the first type that fits.

    A value missing, unknown (left out with ``others``) or of another type is named in a ``UserError`` with ``what``.
    """
    try:
        return _build(kind, content, "", others)
    except _Misfit as error:
        raise UserError(f"{path} isn't {what}: {error}; {remedy}") from error
    except RecursionError as error:
        raise UserError(f"{path} isn't {what}: it is nested too deep; {remedy}") from error


def without_nan(value: Any) -> Any:
    """Returns lists and dictionaries with None for every number that is not finite, as JSON has it."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class _Misfit(Exception):
    """A value that does not fit its type."""


def _build(kind: Any, value: Any, name: str, others: bool) -> Any:
    """Returns the value as its type says; ``name`` leads to it, such as ``heads.entropy.mean``."""
    origin, parts = get_origin(kind), get_args(kind)
    if kind is float and (value is None or type(value) in (int, float)):
        return math.nan if value is None else float(value)  # null stands for a number that is not finite
    if is_dataclass(kind) and isinstance(value, dict):
        return _build_dataclass(kind, value, name, others)
    if origin is dict and isinstance(value, dict) and all(isinstance(key, parts[0]) for key in value):
        return {key: _build(parts[1], item, _join(name, key), others) for key, item in value.items()}
    if origin in (list, tuple) and isinstance(value, list):
        return origin(_build(parts[0], item, name, others) for item in value)
    if origin in (Union, UnionType):
        for part in parts if value is not None or type(None) not in parts else [type(None)]:
            with suppress(_Misfit):
                return _build(part, value, name, others)
    if kind in (Any, type(value)) or (origin is Literal and value in parts):
        return value
    wanted = f", not {' or '.join(map(str, parts))}" if origin is Literal else ""
    raise _Misfit(f"{name or 'its content'} is {type(value).__name__} {str(value)[:40]!r}{wanted}")


def _build_dataclass(kind: Any, value: dict[str, Any], name: str, others: bool) -> Any:
    hints, given = get_type_hints(kind), {}
    for field in fields(kind):
        key = _join(name, field.name)
        if field.name in value:
            given[field.name] = _build(hints[field.name], value[field.name], key, others)
        elif field.default is MISSING and field.default_factory is MISSING:
            raise _Misfit(f"{key} is missing")
    if not others and (unknown := sorted(value.keys() - given.keys())):
        known = ", ".join(hints)
        raise _Misfit(f"{_join(name, unknown[0])} is unknown, known are {known}")
    return kind(**given)


def _join(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key
