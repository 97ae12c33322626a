"""Weights written tensor by tensor, so that memory is bounded by a chunk: safetensors and ``torch.save`` files.

Both writers take ``chunks_of``, which gives the contiguous pieces whose bytes, one after the other, are the named
tensor. It is called by several threads at once, each with another name.
"""

import errno
import mmap
import os
import warnings
import zipfile
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path

import torch

from inheritune_lit.checkpoint.formats import ZIP_HEADER, build_header, zip_header_bytes
from inheritune_lit.checkpoint.tensors import TensorSpec

_WORKERS = max(2, min(4, os.cpu_count() or 1))
"""Reading, checking and writing overlap from two threads on; more than a few wait for the file's lock."""

ChunksOf = Callable[[str], Iterable[torch.Tensor]]


def write_safetensors(path: Path, specs: dict[str, TensorSpec], chunks_of: ChunksOf) -> None:
    """Write a file with tensors in this order.

    Raises:
        OSError: the disk is full or cannot be written.
        ValueError: the chunks of a tensor do not fill it.
    """
    header, offsets = build_header(specs)
    with open(path, "wb") as file:
        file.write(header)
        file.truncate(len(header) + sum(spec.nbytes for spec in specs.values()))
    _write_tensors(path, specs, offsets, chunks_of)


def write_torch_checkpoint(
    path: Path, specs: dict[str, TensorSpec], aliases: dict[str, str], chunks_of: ChunksOf
) -> None:
    """Write a state dict that plain ``torch.load(weights_only=True, mmap=True)`` reads.

    ``torch.save`` lays out the file from tensors without storage; the bytes are then written into place.

    Args:
        specs: the tensors in the order they should have.
        aliases: names that share the storage of a name in ``specs``, such as a tied head.

    Raises:
        OSError: the disk is full or cannot be written.
        ValueError: the chunks of a tensor do not fill it.
    """
    state = _untouched_tensors(specs)
    state |= {name: state[target] for name, target in aliases.items()}
    try:
        with torch.serialization.skip_data():
            torch.save(state, path)
    except RuntimeError as error:
        # Only sizes and names are written here: torch's stream fails when the file may not grow.
        raise OSError(errno.ENOSPC, "the file cannot grow to its size") from error
    _write_tensors(path, specs, _storage_offsets(path, specs), chunks_of)


def _write_tensors(path: Path, specs: dict[str, TensorSpec], offsets: list[int], chunks_of: ChunksOf) -> None:
    descriptor = os.open(path, os.O_RDWR)
    pool = ThreadPoolExecutor(_WORKERS)

    def write(name: str, nbytes: int, offset: int) -> None:
        written = 0
        for chunk in chunks_of(name):
            data = chunk.view(-1).view(torch.uint8).numpy().data
            if written + len(data) > nbytes:
                raise ValueError(f"{name}: more than its {nbytes} bytes")
            done = 0
            while done < len(data):
                done += os.pwrite(descriptor, data[done:], offset + written + done)
            written += done
        if written != nbytes:
            raise ValueError(f"{name}: {written} bytes of {nbytes}")

    try:
        placed = zip(specs.items(), offsets, strict=True)
        futures = [pool.submit(write, name, spec.nbytes, offset) for (name, spec), offset in placed]
        for future in wait(futures, return_when=FIRST_EXCEPTION).done:
            future.result()
    finally:
        pool.shutdown(cancel_futures=True)
        os.close(descriptor)


def _untouched_tensors(specs: dict[str, TensorSpec]) -> dict[str, torch.Tensor]:
    """Tensors of the wanted sizes over pages that are never touched, and so take no memory.

    Fake tensors would say as much, but import the compiler: a second and 85 MB.
    """
    # Read-only private pages are not reserved, whatever the machine's overcommit policy.
    pages = mmap.mmap(-1, max(1, sum(spec.nbytes for spec in specs.values())), mmap.MAP_PRIVATE, mmap.PROT_READ)
    tensors, position = {}, 0
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        for name, spec in specs.items():
            if spec.numel:
                flat = torch.frombuffer(pages, dtype=spec.dtype, count=spec.numel, offset=position)
            else:
                flat = torch.empty(0, dtype=spec.dtype)
            tensors[name] = flat.view(spec.shape)
            position += spec.nbytes
    return tensors


def _storage_offsets(path: Path, specs: dict[str, TensorSpec]) -> list[int]:
    """Where each storage begins. torch numbers them in the order in which the state dict names them."""
    offsets = []
    with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
        records = {Path(info.filename).name: info for info in archive.infolist() if "/data/" in info.filename}
        for number, spec in enumerate(specs.values()):
            info = records[str(number)]
            if info.file_size != spec.nbytes:
                raise ValueError(f"storage {number} of {path} has {info.file_size} bytes, not {spec.nbytes}")
            file.seek(info.header_offset)
            offsets.append(info.header_offset + zip_header_bytes(file.read(ZIP_HEADER.size)))
    return offsets
