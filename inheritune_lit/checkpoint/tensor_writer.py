"""Tensors written into their places in a file by a few threads: memory is bounded by a chunk a thread."""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import torch

_WORKERS = max(2, min(4, os.cpu_count() or 1))
"""Reading, checking and writing overlap from two threads on; more than a few wait for the file's lock."""


@dataclass(frozen=True)
class Place:
    """Where a tensor's bytes are in a file."""

    offset: int
    nbytes: int


def write_tensors(path: Path, places: dict[str, Place], chunks_of: Callable[[str], Iterable[torch.Tensor]]) -> None:
    """Write tensors into an existing file.

    Args:
        path: the file.
        places: the tensors.
        chunks_of: gives the contiguous pieces whose bytes, one after the other, are the named tensor. It is called by
            several threads at once, each with another name.

    Raises:
        OSError: the disk is full or cannot be written.
        ValueError: the chunks of a tensor do not fill it.
    """
    descriptor = os.open(path, os.O_RDWR)
    pool = ThreadPoolExecutor(_WORKERS)
    try:
        futures = [pool.submit(_write, descriptor, name, place, chunks_of) for name, place in places.items()]
        for future in wait(futures, return_when=FIRST_EXCEPTION).done:
            future.result()
    finally:
        pool.shutdown(cancel_futures=True)
        os.close(descriptor)


def _write(descriptor: int, name: str, place: Place, chunks_of: Callable[[str], Iterable[torch.Tensor]]) -> None:
    written = 0
    for chunk in chunks_of(name):
        data = chunk.view(-1).view(torch.uint8).numpy().data
        if written + len(data) > place.nbytes:
            raise ValueError(f"{name}: more than its {place.nbytes} bytes")
        done = 0
        while done < len(data):
            done += os.pwrite(descriptor, data[done:], place.offset + written + done)
        written += done
    if written != place.nbytes:
        raise ValueError(f"{name}: {written} bytes of {place.nbytes}")
