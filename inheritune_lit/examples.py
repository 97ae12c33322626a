"""Calls of each command that its ``--help`` shows, with what they do; a test parses every one."""

from pathlib import Path

_PROGRAM, _COMMANDS = Path(__file__).with_suffix(".txt").read_text(encoding="utf-8").split("\n\n")
EXAMPLES: dict[str, dict[str, str]] = {}  # what each call does, by the command whose help shows it, or "inheritune"
for _shared, _text in (("inheritune", _PROGRAM), (None, _COMMANDS)):
    for _call, _, _what in (line.partition("  # ") for line in _text.splitlines() if not line.startswith("#")):
        EXAMPLES.setdefault(_shared or _call.split()[1], {})[_call] = _what


def examples_of(command: str) -> str:
    """A command's examples as the end of its help, empty where there are none."""
    lines = [line for call, what in EXAMPLES.get(command, {}).items() for line in (f"  {call}", f"      {what}")]
    return "\n".join(["", "examples:", *lines, ""]) if lines else ""
