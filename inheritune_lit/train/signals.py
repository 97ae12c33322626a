"""SIGTERM and Ctrl-C as requests to stop at the next good moment."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def stop_requests() -> Iterator[list[signal.Signals]]:
    """Yield a list that takes up SIGTERM and SIGINT while the block runs, instead of their usual effect."""
    received: list[signal.Signals] = []
    if threading.current_thread() is not threading.main_thread():
        yield received  # Python lets only the main thread handle signals
        return

    def note(number: int, frame: object) -> None:
        received.append(signal.Signals(number))

    before = {number: signal.signal(number, note) for number in STOP_SIGNALS}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
