"""Time, processor time and memory of a command, for the benchmarks beside this file."""

import os
import resource
import subprocess
import threading
import time
from pathlib import Path


def measure(command: list[str], environment: dict[str, str] | None = None) -> dict[str, float]:
    """Wall time and peak anonymous memory of a command and its children."""
    start = time.monotonic()
    used = cpu_seconds()
    process = subprocess.Popen(command, env={**os.environ, **(environment or {})}, stdout=subprocess.DEVNULL)
    peak = 0
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.02):
            peak = max(peak, anonymous_bytes(process.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    code = process.wait()
    done.set()
    watcher.join()
    if code:
        raise RuntimeError(f"{' '.join(command)} ended with {code}")
    return {
        "seconds": round(time.monotonic() - start, 2),
        "cpu_seconds": round(cpu_seconds() - used, 2),
        "peak_anonymous_mb": round(peak / 1e6, 1),
    }


def cpu_seconds() -> float:
    """Processor time of the children that have ended: unlike wall time it holds on a busy machine."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def anonymous_bytes(process: int) -> int:
    """Anonymous resident memory of a process and its children (Linux)."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except OSError:
        return 0
    own = next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon")), 0)
    return own + sum(anonymous_bytes(int(child)) for child in children)


def own_anonymous_bytes() -> int:
    """Anonymous resident memory of this process without its children, such as a compiler (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))
