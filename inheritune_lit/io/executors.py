"""Where independent pieces of work run: in this process, in a pool of processes, or on a Dask cluster."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager, nullcontext
from multiprocessing.process import BaseProcess
from typing import Any

from inheritune_lit.errors import UserError, first_line
from inheritune_lit.io.machine import end_with

_CONNECT_SECONDS = 20


def open_executor(
    num_workers: int, cluster: str | None = None, initializer: Callable[[], Any] | None = None
) -> AbstractContextManager[Executor | None]:
    """Returns a context that gives an executor; None for one worker without a cluster, which means this process.

    It has processes of this machine, which call ``initializer`` first, or those of a ``cluster``, the address of a Dask
    scheduler such as tcp://host:8786, which gives a killed worker's work to another one. Results are asked for inside
    the block; one that ends with an exception stops what has begun. Killed workers, no scheduler, or no ``distributed``
    are a ``UserError``.
    """
    if cluster is not None:
        return _dask_executor(cluster)
    return nullcontext() if num_workers == 1 else _process_pool(num_workers, initializer)


def available_cores() -> int:
    """Returns how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _process_pool(num_workers: int, initializer: Callable[[], Any] | None) -> Iterator[Executor]:
    # By spawning: torch and its threads do not survive a fork.
    pool = ProcessPoolExecutor(num_workers, multiprocessing.get_context("spawn"), _start_worker, (initializer,))
    processes = pool._processes  # by their ids, those that have ended too
    try:
        yield pool
    except BrokenProcessPool:
        pool.shutdown()
        raise UserError(_explain_death(processes.values())) from None
    except BaseException:
        for process in list(processes.values()):
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker(initializer: Callable[[], Any] | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the first one sees to the rest
    if parent := multiprocessing.parent_process():
        end_with(parent.pid)
    if initializer is not None:
        initializer()


def _explain_death(processes: Iterable[BaseProcess]) -> str:
    # The pool sends SIGTERM to those that are left when one has ended.
    code = min((one.exitcode for one in processes if one.exitcode not in (None, 0, -signal.SIGTERM)), default=1)
    cause = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    remedy = "run the same command again, with a smaller --num_workers if it is not the first time"
    return f"a worker process ended with {cause}, perhaps for want of memory; {remedy}"


@contextmanager
def _dask_executor(address: str) -> Iterator[Executor]:
    try:
        from distributed import Client, KilledWorker
    except ImportError as error:
        raise UserError("--cluster needs Dask; install it with pip install 'inheritune-lit[cluster]'") from error
    try:
        client = Client(address, timeout=_CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError) as error:  # TimeoutError is an OSError
        raise UserError(f"--cluster {address}: no Dask scheduler answers there ({first_line(error)})") from error
    try:
        yield client.get_executor()
    except KilledWorker as error:
        ended = f"several workers of {address} ended while they did the same piece of work"
        remedy = "run the same command again with more memory per worker"
        raise UserError(f"{ended}, perhaps for want of memory; {remedy}") from error
    except CancelledError as error:
        raise UserError(f"the Dask scheduler at {address} is gone; run the same command again to continue") from error
    finally:
        client.close()
