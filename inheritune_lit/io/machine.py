"""What the machine lacks or refuses (space, memory, permission, open streams), in one line; and its signals."""

import errno
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from inheritune_lit.errors import first_line
from inheritune_lit.io.tables import own_table

_REMEDIES = {getattr(errno, row["error"]): row["remedy"] for row in own_table(__file__)}
_NO_MEMORY = ("not enough memory", "out of memory", "ALLOC_FAILED")  # torch on a CPU, on a GPU, and cuBLAS


def prepare_cuda() -> None:
    """Lets CUDA's memory grow in place unless the user chose otherwise; before torch is imported, which reads it."""
    if sys.platform == "linux" and "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")


def explain_machine(error: BaseException, smaller: str = "smaller batches or a smaller model") -> str | None:
    """What is wrong, where, and what to do about it, of an error that the machine causes; None of any other.

    ``smaller`` is what needs less memory where that of torch ran out.
    """
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "start new thread" in str(error)):
        return "too little memory is left, or a limit is set (ulimit -v, -u); free some or raise the limit"
    if isinstance(error, RuntimeError) and any(word in str(error) for word in _NO_MEMORY):
        return f"{first_line(error).partition(' Including')[0].rstrip('.')}; free memory, or give {smaller}"
    if not isinstance(error, OSError) or error.errno is None:
        return None
    if error.errno == errno.ENOENT and not _has_current_folder():
        return "the current folder has been removed; change to another and run the command again"
    what = " to ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
    reason, remedy = error.strerror or os.strerror(error.errno), _REMEDIES.get(error.errno, "check the path")
    return f"{what}{': ' if what else ''}{reason}; {remedy}"


def open_streams() -> None:
    """Open closed standard streams, whose numbers files opened next would get; let narrow ones escape characters."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def end_with(parent: int | None) -> None:
    """Has this process end soon after the one that started it, which has this id, however that ended."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(2)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def handle_signals(handler: Callable[[int, Any], Any], *numbers: signal.Signals) -> Iterator[bool]:
    """Calls ``handler`` for these signals while the block runs; yields whether it does: only the main thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield False
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield True
    finally:
        for number, usual in before.items():
            signal.signal(number, usual)


def _has_current_folder() -> bool:
    try:
        os.getcwd()
    except OSError:
        return False
    return True
