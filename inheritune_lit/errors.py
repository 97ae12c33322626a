"""The error type meant for users, and what its messages have in common."""

import difflib
from collections.abc import Iterable

_MOST = 2000  # characters of a message; a value that somebody wrote into a file may have any number


class UserError(Exception):
    """Bad input (exit code 2): the message is one line that says what is wrong, the value seen, and what to do.

    Names in it may come from others' files: control characters, which a terminal would obey, are written out.
    """

    def __init__(self, message: str) -> None:
        line = printable(" ".join(message.splitlines()))
        super().__init__(line if len(line) <= _MOST else f"{line[: _MOST // 2]} ... {line[-_MOST // 2 :]}")


def printable(text: str, keep: str = "") -> str:
    """Returns a text with every character that is not printed, but for those in ``keep``, as Python writes it."""
    return "".join(
        each if each.isprintable() or each in keep else each.encode("unicode_escape", "surrogatepass").decode()
        for each in text
    )


def first_line(error: BaseException) -> str:
    """The first line of another error's message, its class where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def suggest(given: str, known: Iterable[str], otherwise: str = "", most: int = 1, cutoff: float = 0.6) -> str:
    """Asks "did you mean a or b?" of ``most`` known names as near as ``cutoff`` (0 to 1), or returns ``otherwise``."""
    by_lower = {name.lower(): name for name in known}
    near = difflib.get_close_matches(given.lower(), by_lower, n=most, cutoff=cutoff)
    return f"did you mean {' or '.join(by_lower[name] for name in near)}?" if near else otherwise
