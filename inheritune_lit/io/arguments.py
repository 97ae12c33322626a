"""What the arguments of every command have in common."""

import math
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

from inheritune_lit.errors import UserError

Quantization = Literal["bnb.nf4", "bnb.nf4-dq", "bnb.fp4", "bnb.fp4-dq", "bnb.int8"]
MOST_SEED = 2**64 - 1
Precision = Literal["32-true", "bf16-mixed", "bf16-true"]  # Fabric's names of how weights are kept and computed with


@dataclass(frozen=True)
class CommandArgs:
    """Base of the arguments of a command: a library function takes them, and the command line is made of them.

    A subclass declares and explains each argument, and checks in ``__post_init__`` what can be checked without torch.
    Its first field that is not keyword-only may be given without a flag. Paths may be strings, strings paths.
    """

    aliases: ClassVar[dict[str, str]] = {}  # other names of flags

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for field in fields(self):
            value, kinds = getattr(self, field.name), kinds_of(hints[field.name])
            if isinstance(value, str) and Path in kinds and str not in kinds:
                object.__setattr__(self, field.name, Path(value))
            elif isinstance(value, Path) and str in kinds and Path not in kinds:
                object.__setattr__(self, field.name, str(value))
            elif isinstance(value, list) and list[Path] in kinds:
                object.__setattr__(self, field.name, [Path(each) for each in value])


def check_numbers(values: Any, *names: str, group: str = "", least: int | None = None, most: float = math.inf) -> None:
    """Refuse arguments below ``least``, not above 0 where that is None, above ``most``, or not finite; None passes."""
    for name in names:
        value = getattr(values, name)
        if value is None or (value <= most and value < math.inf and (value > 0 if least is None else value >= least)):
            continue
        wanted = "a number above 0" if least is None else f"{least} or more"
        if most < math.inf:
            wanted = f"{wanted} and at most {most}" if least is None else f"{least} to {most}"
        raise UserError(f"--{group}{name} is {value}; give {wanted}")


def kinds_of(kind: Any) -> tuple[Any, ...]:
    """The types that a union has; a type itself where it is not one."""
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def is_list(kind: Any) -> bool:
    """Whether an argument takes several values."""
    return any(get_origin(part) is list for part in (kind, *get_args(kind)))


def flags_of(kind: type) -> dict[str, Any]:
    """Flags of an argument dataclass without dashes, and their types; ``train.max_steps`` for those in a group."""
    hints = get_type_hints(kind)
    flags: dict[str, Any] = {}
    for field in fields(kind):
        of = hints[field.name]
        if isinstance(of, type) and is_dataclass(of):
            flags |= {f"{field.name}.{inner}": wanted for inner, wanted in flags_of(of).items()}
        else:
            flags[field.name] = of
    return flags


def first_argument(kind: type[CommandArgs]) -> str | None:
    """The argument that may be given without a flag, None where there is none."""
    return next((field.name for field in fields(kind) if not field.kw_only), None)
