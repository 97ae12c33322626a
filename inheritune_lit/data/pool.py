"""SIGTERM as an orderly end."""

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait

from inheritune_lit.data.jobs import Job
from inheritune_lit.data.shards import PartsContext, PartsMaker, Step
from inheritune_lit.errors import UserError


@contextmanager
def stop_at_once() -> Iterator[None]:
    """While the block runs, SIGTERM raises ``SystemExit`` (143), so that what is half-done is cleaned up."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python lets only the main thread handle signals
        return

    def stop(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def run_jobs(jobs: list[Job], context: PartsContext, num_workers: int, report: Callable[[Step], None]) -> None:
    """Do all jobs.

    Args:
        jobs: what to do.
        context: what the jobs share.
        num_workers: processes; with 1 everything happens in this one.
        report: told, in this process, of each step.

    Raises:
        UserError: a job failed, or a worker was killed.
    """
    if num_workers <= 1 or len(jobs) <= 1:
        maker = PartsMaker(context, report)
        for job in jobs:
            maker.make(job)
        return
    # The largest first, so that none is left over at the end; the result does not depend on the order.
    waiting = sorted(jobs, key=lambda job: job.bytes)
    spawn = multiprocessing.get_context("spawn")  # forking a process with threads, such as torch's, is unsafe
    workers: dict[Connection, multiprocessing.process.BaseProcess] = {}
    try:
        for _ in range(min(num_workers, len(jobs))):
            ours, theirs = spawn.Pipe()
            process = spawn.Process(target=_work, args=(theirs, context), daemon=True)
            process.start()
            theirs.close()
            workers[ours] = process
            ours.send(waiting.pop())
        idle: set[Connection] = set()
        while len(idle) < len(workers):
            for connection in _ready([connection for connection in workers if connection not in idle]):
                try:
                    message = connection.recv()
                except (EOFError, ConnectionResetError):
                    raise UserError(_explain_death(workers[connection])) from None
                if isinstance(message, Step):
                    report(message)
                elif isinstance(message, UserError):
                    raise message
                elif isinstance(message, str):
                    raise RuntimeError(f"a worker failed:\n{message}")
                elif waiting:
                    connection.send(waiting.pop())
                else:
                    idle.add(connection)
    finally:
        for connection, running in workers.items():
            connection.close()
            running.terminate()
        for running in workers.values():
            running.join()


def _ready(connections: list[Connection]) -> list[Connection]:
    """Those with something to read; waits for one."""
    ready = wait(connections)
    return [connection for connection in connections if connection in ready]


def _work(connection: Connection, context: PartsContext) -> None:
    """Do the jobs that come through the pipe; None or its end is the end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the first one sees to the rest
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    with stop_at_once():
        try:
            maker = PartsMaker(context, connection.send)
            while True:
                maker.make(connection.recv())
                connection.send(None)
        except (EOFError, BrokenPipeError, ConnectionResetError):
            return  # the first process is gone
        except UserError as error:
            connection.send(error)
        except Exception:
            connection.send(traceback.format_exc())


def _explain_death(process: multiprocessing.process.BaseProcess) -> str:
    process.join(5)
    code = process.exitcode
    cause = signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"
    return (
        f"a worker process ended with {cause}, perhaps for want of memory; run the same command again, "
        "with a smaller --num_workers if it is not the first time"
    )
