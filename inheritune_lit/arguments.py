"""Everyday spellings of flags, turned into what jsonargparse understands."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, get_args, get_origin, get_type_hints


def spell_out(args: list[str], commands: Mapping[str, Callable[..., Any]]) -> list[str]:
    """Rewrite ``--flag`` to ``--flag=true`` and ``--many A B`` to ``--many+=A --many+=B``.

    Only parameters of the named command that are annotated ``bool``, ``list[...]`` or ``list[...] | None`` are touched.

    Args:
        args: command line without the program's name.
        commands: subcommand names and their functions.
    """
    command = next((arg for arg in args if arg in commands), None)
    if command is None:
        return args
    hints = get_type_hints(commands[command])
    kinds = {f"--{name}": hints[name] for name in inspect.signature(commands[command]).parameters}
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
        elif (
            any(get_origin(part) is list for part in (kind, *get_args(kind)))
            and values
            and not values[0].startswith("[")
        ):
            spelled += [f"{arg}+={value}" for value in values]
            position = values_end
        else:
            spelled.append(arg)
    return spelled


def _is_list(kind: Any) -> bool:
    return any(get_origin(part) is list for part in (kind, *get_args(kind)))
