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
    replace_text(path, json.dumps(without_nan(asdict(record)), indent=1, allow_nan=False) + "\n")


def read_record(path: Path, kind: type[Record], what: str, remedy: str) -> Record:
    """Reads a dataclass that ``write_record`` wrote.

    Args:
        path: the file.
        kind: the dataclass.
        what: what the file should be, such as "the result of an analysis".
        remedy: what to do where it is not, such as "give the --out_dir of one".

    Raises:
        UserError: the file is missing or damaged, or a value in it has another type; the message names the value.
    """
    return to_record(read_json(path, what, remedy), kind, path, what, remedy)


def to_record(
    content: Any, kind: type[Record], path: Path, what: str, remedy: str = AGAIN, others: bool = False
) -> Record:
    """Returns what was read from a JSON or YAML file as a dataclass.

    Args:
        content: of the file.
        kind: the dataclass; a field whose type is a union takes the first type that fits.
        path: the file.
        what: what it should be, such as "packed data".
        remedy: what to do where it is not.
        others: values that the dataclass does not have are left out, not refused.

    Raises:
        UserError: a value is missing, unknown, or has another type; the message names it.
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
    if kind is float:  # null stands for a number that is not finite
        if value is None or type(value) in (int, float):
            return math.nan if value is None else float(value)
    elif is_dataclass(kind):
        if isinstance(value, dict):
            return _build_dataclass(kind, value, name, others)
    elif origin is dict:
        if isinstance(value, dict) and all(isinstance(key, parts[0]) for key in value):
            return {key: _build(parts[1], item, _join(name, key), others) for key, item in value.items()}
    elif origin in (list, tuple):
        if isinstance(value, list):
            items = [_build(parts[0], item, name, others) for item in value]
            return items if origin is list else tuple(items)
    elif origin in (Union, UnionType):
        for part in parts if value is not None or type(None) not in parts else [type(None)]:
            with suppress(_Misfit):
                return _build(part, value, name, others)
    elif origin is Literal:
        if value in parts:
            return value
    elif kind is Any or (kind is type(None) and value is None) or (isinstance(kind, type) and type(value) is kind):
        return value
    raise _Misfit(f"{name or 'its content'} is {type(value).__name__} {str(value)[:40]!r}")


def _build_dataclass(kind: Any, value: dict[str, Any], name: str, others: bool) -> Any:
    known = {field.name: field for field in fields(kind)}
    unknown = sorted(value.keys() - known.keys())
    if unknown and not others:
        raise _Misfit(f"{_join(name, unknown[0])} is unknown")
    for key, field in known.items():
        if key not in value and field.default is MISSING and field.default_factory is MISSING:
            raise _Misfit(f"{_join(name, key)} is missing")
    hints = get_type_hints(kind)
    given = {key: item for key, item in value.items() if key in known}
    return kind(**{key: _build(hints[key], item, _join(name, key), others) for key, item in given.items()})


def _join(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key
