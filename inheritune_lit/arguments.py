"""Everyday spellings of flags, turned into what jsonargparse understands, and choices checked before it."""

import difflib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

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
    first = next(iter(kinds), "")
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
    flags = flags_of(commands[command])
    for position, arg in enumerate(args):
        flag, equals, value = arg.partition("=")
        if not equals:
            value = args[position + 1] if position + 1 < len(args) else "--"
        choices = _choices(flags.get(flag.removeprefix("--")))
        if choices and value not in (*choices, "null") and not value.startswith("--"):
            near = difflib.get_close_matches(value, choices, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise UserError(f"{flag} is {value!r}; {hint}give one of {', '.join(choices)}")


def check_groups(args: list[str], commands: Mapping[str, Callable[..., Any]]) -> None:
    """Check that a recipe's groups of flags, such as ``train``, hold flags: jsonargparse 4.41 takes anything.

    Args:
        args: command line without the program's name; files behind ``--config`` are YAML mappings.
        commands: subcommand names and their functions.

    Raises:
        UserError: one holds something else.
    """
    command = next((arg for arg in args if arg in commands), None)
    if command is None:
        return
    groups = [name for name, kind in get_type_hints(commands[command]).items() if is_dataclass(kind)]
    for position, arg in enumerate(args):
        flag, equals, value = arg.partition("=")
        if flag != "--config" or not (equals or position + 1 < len(args)):
            continue
        path = Path(value or args[position + 1])
        content = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
        for name in groups:
            if not isinstance(content.get(name, {}), dict):
                raise UserError(f"{name} in {path} is {content[name]!r}; give flags, a line each below `{name}:`")


def flags_of(function: Callable[..., Any]) -> dict[str, Any]:
    """A command's flags without their dashes, and their types; ``train.max_steps`` for those in a dataclass."""
    flags: dict[str, Any] = {}
    for name, kind in get_type_hints(function).items():
        if isinstance(kind, type) and is_dataclass(kind):
            flags |= {f"{name}.{inner}": of for inner, of in flags_of(kind).items()}
        elif name != "return":
            flags[name] = kind
    return flags


def kinds_of(kind: Any) -> tuple[Any, ...]:
    """The types that a union has; a type itself where it is none."""
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def _choices(kind: Any) -> tuple[str, ...]:
    """The words that a flag takes; none where it takes something else."""
    parts = [part for part in kinds_of(kind) if part is not type(None)]
    if any(get_origin(part) is not Literal for part in parts):
        return ()
    return tuple(str(word) for part in parts for word in get_args(part))
