"""Weights written tensor by tensor, so that memory is bounded by a chunk: safetensors and ``torch.save`` files."""

import errno
import math
import mmap
import os
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import torch

from inheritune_lit.checkpoint.safetensors_files import build_header
from inheritune_lit.checkpoint.weights import TensorSpec

_WORKERS = max(2, min(4, os.cpu_count() or 1))
"""Reading, checking and writing overlap from two threads on; more than a few wait for the file's lock."""


_LOCAL_HEADER = struct.Struct("<26xHH")
"""Zip local file header up to the lengths of the name and of the extra field, which come before the data."""


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


def write_safetensors(
    path: Path,
    specs: dict[str, tuple[torch.dtype, tuple[int, ...]]],
    chunks_of: Callable[[str], Iterable[torch.Tensor]],
) -> None:
    """Write a file tensor by tensor.

    Args:
        path: the file to write.
        specs: the tensors in the order of their bytes.
        chunks_of: as for ``write_tensors``.

    Raises:
        OSError: the disk is full or cannot be written.
        ValueError: the chunks of a tensor do not fill it.
    """
    # transformers refuses files that do not say "pt".
    header = build_header(specs, {"format": "pt"})
    places, position = {}, len(header)
    for name, (dtype, shape) in specs.items():
        places[name] = Place(position, math.prod(shape) * dtype.itemsize)
        position += places[name].nbytes
    with open(path, "wb") as file:
        file.write(header)
        file.truncate(position)
    write_tensors(path, places, chunks_of)


def write_torch_checkpoint(
    path: Path,
    specs: dict[str, TensorSpec],
    aliases: dict[str, str],
    chunks_of: Callable[[str], Iterable[torch.Tensor]],
) -> None:
    """Write a state dict that plain ``torch.load(weights_only=True, mmap=True)`` reads.

    ``torch.save`` lays out the file from tensors without storage; the bytes are then written into place.

    Args:
        path: the file to write.
        specs: the tensors in the order they should have.
        aliases: names that share the storage of a name in ``specs``, such as a tied head.
        chunks_of: as for ``write_tensors``.

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
    offsets = _storage_offsets(path, [spec.nbytes for spec in specs.values()])
    places = {name: Place(offset, specs[name].nbytes) for name, offset in zip(specs, offsets, strict=True)}
    write_tensors(path, places, chunks_of)


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


def _storage_offsets(path: Path, sizes: list[int]) -> list[int]:
    """Where each storage begins. torch numbers them in the order in which the state dict names them."""
    with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
        records = {Path(info.filename).name: info for info in archive.infolist() if "/data/" in info.filename}
        offsets = []
        for number, size in enumerate(sizes):
            info = records[str(number)]
            if info.file_size != size:
                raise ValueError(f"storage {number} of {path} has {info.file_size} bytes, not {size}")
            file.seek(info.header_offset)
            name_length, extra_length = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
            offsets.append(info.header_offset + _LOCAL_HEADER.size + name_length + extra_length)
    return offsets
