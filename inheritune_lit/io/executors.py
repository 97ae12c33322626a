"""Where independent pieces of work run: in this process, in a pool of processes, or on a Dask cluster."""

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

from inheritune_lit.errors import UserError


@contextmanager
def open_executor(
    num_workers: int, cluster: str | None = None, initializer: Callable[[], Any] | None = None
) -> Iterator[Executor | None]:
    """Yields an executor; None for one worker without a cluster, which means this process.

    Args:
        num_workers: processes of this machine; without effect on a cluster, which has its own workers.
        cluster: address of a Dask scheduler, such as tcp://host:8786.
        initializer: called once in each process of a pool.

    Raises:
        UserError: there is no such cluster, or ``distributed`` is not installed.
    """
    if cluster is not None:
        with _connect(cluster) as client:
            yield client.get_executor()
    elif num_workers == 1:
        yield None
    else:
        # Spawned: torch and its threads do not survive a fork.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(num_workers, context, initializer) as pool:
            yield pool


def _connect(cluster: str) -> Any:
    try:
        from distributed import Client
    except ImportError as error:
        raise UserError("--cluster needs Dask: pip install 'inheritune-lit[cluster]'") from error
    try:
        return Client(cluster, timeout=30)
    except (OSError, ValueError) as error:  # TimeoutError is an OSError
        raise UserError(f"--cluster {cluster}: no Dask scheduler answers there ({error})") from error
