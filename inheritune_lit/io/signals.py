"""Signals taken up while a block runs."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def handle_signals(handler: Callable[[int, Any], Any], *numbers: signal.Signals) -> Iterator[bool]:
    """Calls ``handler`` for these signals, instead of their usual effect, while the block runs.

    Yields whether it does: Python lets only the main thread handle signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield False
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield True
    finally:
        for number, usual in before.items():
            signal.signal(number, usual)
