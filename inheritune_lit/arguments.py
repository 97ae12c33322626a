"""Everyday spellings of flags, turned into what jsonargparse understands, and choices checked before it."""

import difflib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from inheritune_lit.errors import UserError


def spell_out(args: list[str], commands: Mapping[str, Callable[..., Any]]) -> list[str]:
    """Rewrite ``--flag`` to ``--flag=true`` and ``--many A B`` to ``--many+=A --many+=B``.

    Only parameters of the named command that are annotated ``bool``, ``list[...]`` or ``list[...] | None`` are touched.
    Words right behind a command whose first parameter is a list belong to that one: ``report A B``.

    Args:
        args: command line without the program's name.
        commands: subcommand names and their functions.
    """
    command = next((arg for arg in args if arg in commands), None)
    if command is None:
        return args
    hints = get_type_hints(commands[command])
    kinds = {f"--{name}": hints[name] for name in inspect.signature(commands[command]).parameters}
    first = next(iter(kinds), None)
    behind = args.index(command) + 1
    if behind < len(args) and not args[behind].startswith("-") and _is_list(kinds.get(first)):
        args = [*args[:behind], first, *args[behind:]]
    spelled: list[str] = []
    position = 0
    while position < len(args):
        arg = args[position]
        position += 1
        values_end = position
        while values_end < len(args) and not args[values_end].startswith("--"):
            values_end += 1
        values = args[position:values_end]
        kind = kinds.get(arg)
        if kind is bool and not values:
            spelled.append(f"{arg}=true")
        elif _is_list(kind) and values and not values[0].startswith("["):
            spelled += [f"{arg}+={value}" for value in values]
            position = values_end
        else:
            spelled.append(arg)
    return spelled


def _is_list(kind: Any) -> bool:
    return any(get_origin(part) is list for part in (kind, *get_args(kind)))


def check_choices(args: list[str], commands: Mapping[str, Callable[..., Any]]) -> None:
    """Check flags that take one of a few words: jsonargparse 4.41 cannot tell its users which.

    Args:
        args: command line without the program's name.
        commands: subcommand names and their functions.

    Raises:
        UserError: another word.
    """
    command = next((arg for arg in args if arg in commands), None)
    if command is None:
        return
    for position, arg in enumerate(args):
        flag, equals, value = arg.partition("=")
        if not equals:
            value = args[position + 1] if position + 1 < len(args) else "--"
        choices = _choices(commands[command], flag)
        if choices and value not in (*choices, "null") and not value.startswith("--"):
            near = difflib.get_close_matches(value, choices, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise UserError(f"{flag} is {value!r}; {hint}give one of {', '.join(choices)}")


def _choices(function: Callable[..., Any], flag: str) -> tuple[str, ...]:
    """The words that a flag takes; none where it takes something else."""
    kind: Any = function
    for name in flag.removeprefix("--").split("."):
        if not flag.startswith("--") or not (callable(kind) or is_dataclass(kind)):
            return ()
        kind = get_type_hints(kind).get(name)
    parts = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    parts = [part for part in parts if part is not type(None)]
    if not parts or any(get_origin(part) is not Literal for part in parts):
        return ()
    return tuple(str(word) for part in parts for word in get_args(part))
