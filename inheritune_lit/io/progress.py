"""Progress for people: a live bar on a terminal, plain lines elsewhere."""

import sys
import threading
import time
from typing import TextIO

from tqdm import tqdm


class Progress:
    """Counts work done towards a total, by any number of threads, and shows it."""

    def __init__(
        self,
        label: str,  # what is being done, a few words
        total: int | None,  # amount of work, None when it is not known
        unit: str,  # of the total, such as "step" or "B" for bytes
        done: int = 0,  # before, when something is continued
        interval_s: float = 10.0,  # between plain lines where the output is not a terminal
        stream: TextIO | None = None,  # where to write; stderr by default, so results on stdout stay clean
        hidden: bool = False,  # count, but show nothing
    ) -> None:
        self.label, self.total, self.unit, self.interval_s = label, total, unit, interval_s
        self.stream, self.hidden = stream if stream is not None else sys.stderr, hidden
        self.done = self._done_before = done
        self._note, self._shown = "", -1
        self._start = self._last = time.monotonic()
        self._bar, self._lock = None, threading.Lock()
        if self.stream.isatty() and not hidden:
            look = {"unit": unit, "unit_scale": unit == "B", "dynamic_ncols": True}
            self._bar = tqdm(desc=label, total=total, initial=done, file=self.stream, **look)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        """Take the bar away; elsewhere print the last line unless the work failed."""
        if self._bar is not None:
            self._bar.close()
        elif error[0] is None and self._shown != self.done:
            self._line()

    def update(self, amount: int = 1, note: str | None = None) -> None:
        """Add ``amount`` of work done; ``note`` replaces the text behind the figures."""
        with self._lock:
            self.done += amount
            if note is not None:
                self._note = note
            if self._bar is not None:
                if note is not None:
                    self._bar.set_postfix_str(note, refresh=False)
                self._bar.update(amount)
            elif time.monotonic() - self._last >= self.interval_s:
                self._line()

    def _line(self) -> None:
        if self.hidden:
            return
        self._last, self._shown = time.monotonic(), self.done
        elapsed = self._last - self._start
        of_total = "" if self.total is None else f"/{self.total:,}"
        note = f", {self._note}" if self._note else ""
        line = f"{self.label}: {self.done:,}{of_total} {self.unit}{note}, {elapsed:.0f} s"
        if self.total and self._done_before < self.done < self.total:
            line += f", {elapsed * (self.total - self.done) / (self.done - self._done_before):.0f} s left"
        try:
            self.stream.write(f"{line}\n")
            self.stream.flush()
        except OSError:  # whoever read them has gone; the work goes on
            self.hidden = True
