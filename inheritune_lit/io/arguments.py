"""What the arguments of every command have in common."""

from dataclasses import dataclass, fields
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class CommandArgs:
    """Base of the arguments of a command: a library function takes them, and the command line is made of them.

    A subclass declares and explains each argument, and checks in ``__post_init__`` what can be checked without torch.
    The first field is what a user may give without naming it. Paths may be strings.
    """

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for field in fields(self):
            value = getattr(self, field.name)
            if (
                isinstance(value, str)
                and Path in kinds_of(hints[field.name])
                and str not in kinds_of(hints[field.name])
            ):
                object.__setattr__(self, field.name, Path(value))
            elif isinstance(value, list) and list[Path] in kinds_of(hints[field.name]):
                object.__setattr__(self, field.name, [Path(each) for each in value])


def kinds_of(kind: Any) -> tuple[Any, ...]:
    """The types that a union has; a type itself where it is not one."""
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
