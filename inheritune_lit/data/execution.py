"""Where shards are written: in this process, in a pool of processes, on a Dask cluster, or on any executor."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Executor, Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.process import BaseProcess

from inheritune_lit.data.shards import Shard, ShardContext, ShardWriter, Step, write_shard
from inheritune_lit.errors import UserError

_BYTES_WORTH_A_WORKER = 1 << 22  # starting one takes about as long as encoding this much text


def write_shards(
    shards: Sequence[Shard],
    context: ShardContext,
    report: Callable[[Step], None],
    num_workers: int | None = None,
    cluster: str | None = None,
    executor: Executor | None = None,
) -> None:
    """Writes all shards; what comes out is the same wherever they are written.

    Args:
        shards: what to write.
        context: what the shards share.
        report: called, in this process, with each step.
        num_workers: processes of this machine, its cores when None; with 1, or little text, this process does it all.
        cluster: address of a Dask scheduler, instead of processes of this machine.
        executor: any executor, instead of either; its workers have to see the same files.

    Raises:
        UserError: a shard cannot be written, a worker of the pool was killed, or the cluster is lost.
    """
    if executor is not None:
        _collect(_submit(executor, shards, context), report)
    elif cluster is not None:
        with _cluster_executor(cluster) as executor:
            _collect(_submit(executor, shards, context), report)
    else:
        worth = 1 + sum(shard.bytes for shard in shards) // _BYTES_WORTH_A_WORKER
        workers = min(num_workers or _available_cores(), worth, len(shards))
        if workers > 1:
            _write_in_pool(shards, context, report, workers)
        elif shards:
            writer = ShardWriter(context)
            for shard in shards:
                writer.write(shard, report)


def _submit(executor: Executor, shards: Sequence[Shard], context: ShardContext) -> list[Future[Step]]:
    # The largest first, so that none is left over at the end.
    by_size = sorted(shards, key=lambda shard: shard.bytes, reverse=True)
    return [executor.submit(write_shard, context, shard) for shard in by_size]


def _collect(futures: Sequence[Future[Step]], report: Callable[[Step], None]) -> None:
    try:
        for future in as_completed(futures):
            report(future.result())
    finally:
        for future in futures:
            future.cancel()


def _write_in_pool(
    shards: Sequence[Shard], context: ShardContext, report: Callable[[Step], None], workers: int
) -> None:
    others = multiprocessing.active_children()
    spawn = multiprocessing.get_context("spawn")  # forking a process with threads, such as torch's, is unsafe
    pool = ProcessPoolExecutor(workers, spawn, initializer=_start_worker)
    try:
        futures = _submit(pool, shards, context)
        processes = [process for process in multiprocessing.active_children() if process not in others]
        try:
            _collect(futures, report)
        except BaseException:
            for process in processes:
                process.terminate()  # a shard in the middle is written again by the next call
            raise
    except BrokenProcessPool:
        pool.shutdown()
        raise UserError(_explain_death(processes)) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the first one sees to the rest
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _explain_death(processes: Sequence[BaseProcess]) -> str:
    # The pool sends SIGTERM to those that are left when one has ended.
    codes = {process.exitcode for process in processes} - {None, 0, -signal.SIGTERM}
    code = min(codes, default=None)
    cause = signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"
    return (
        f"a worker process ended with {cause}, perhaps for want of memory; run the same command again, "
        "with a smaller --num_workers if it is not the first time"
    )


@contextmanager
def _cluster_executor(address: str) -> Iterator[Executor]:
    """Yields the executor of a Dask cluster, which gives a killed worker's shards to others."""
    try:
        from distributed import Client, KilledWorker
    except ImportError as error:
        raise UserError(
            "--cluster needs Dask, which is not installed; run `pip install 'inheritune-lit[cluster]'`"
        ) from error
    try:
        client = Client(address, timeout=20, set_as_default=False)
    except (OSError, ValueError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"no Dask scheduler answers at {address} ({reason}); check --cluster") from error
    try:
        yield client.get_executor()
    except KilledWorker as error:
        raise UserError(
            f"several workers of {address} ended while they wrote the same shard, perhaps for want of memory; run the "
            "same command again with more memory per worker"
        ) from error
    except CancelledError as error:
        raise UserError(f"the Dask scheduler at {address} is gone; run the same command again to continue") from error
    finally:
        client.close()


def _available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
