"""What jsonargparse 4.41 says of bad arguments, in words for users."""

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, get_args, get_origin

from inheritune_lit.arguments import flags_of, kinds_of

_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    dict: "a mapping such as {a: 1}",
    list: "one or more values",
}


def reword(message: str, command: str | None, commands: Mapping[str, Callable[..., Any]]) -> str:
    """One line that says what is wrong, the value seen, and what to give.

    Args:
        message: jsonargparse's, perhaps of several lines.
        command: the subcommand that was named, None where none was.
        commands: subcommand names and their functions.
    """
    flags = flags_of(commands[command]) if command and command in commands else {}
    if key := re.match(r'Parser key "([^"]+)":', message):
        return _wrong_value(key[1], message, flags)
    if key := re.search(r'Key "(?:[a-z]+\.)?([^"]+)" is required', message):
        return f"--{key[1]} is missing"
    if key := re.search(r"does not accept nested key '([^']+)'", message):
        return _unknown(f"--{key[1]}", flags)
    if key := re.match(r"Unrecognized arguments: (\S+)", message):
        return _unknown(key[1].partition("=")[0], flags)
    if key := re.match(r"argument (--[^:/]+)\S*: expected one argument", message):
        return f"{key[1]} needs a value"
    if key := re.search(r"invalid choice: '([^']*)'", message):
        return f"there is no command {key[1]!r}; {_meant(key[1], commands)}give one of {', '.join(commands)}"
    return " ".join(message.split())


def _wrong_value(key: str, message: str, flags: Mapping[str, Any]) -> str:
    value = re.search(r"(?:Given|Got) value: (.*?)(?:\n|$)", message)
    told = [_wanted(kind) for kind in kinds_of(flags.get(key)) if kind is not type(None)]
    seen = f" is {value[1].strip()!r}" if value else " has a wrong value"
    return f"--{key}{seen}; give {' or '.join(told)}" if told else " ".join(message.split())


def _wanted(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}"
    return _WORDS.get(get_origin(kind) or kind, "what its help says")


def _unknown(flag: str, flags: Mapping[str, Any]) -> str:
    if not flag.startswith("--"):
        return f"{flag!r} belongs to no flag"
    return f"there is no flag {flag}; {_meant(flag.removeprefix('--'), flags, '--')}".rstrip("; ")


def _meant(given: str, known: Iterable[str], dashes: str = "") -> str:
    near = difflib.get_close_matches(given, known, n=1)
    return f"did you mean {dashes}{near[0]}? " if near else ""
