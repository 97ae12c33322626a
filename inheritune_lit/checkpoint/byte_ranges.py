"""Chosen tensors of a file on the hub, by ranged reads, into a smaller safetensors file."""

import fcntl
import hashlib
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from inheritune_lit.checkpoint.safetensors_files import TensorEntry, build_header, header_length, parse_header
from inheritune_lit.errors import UserError
from inheritune_lit.io.progress import Progress

_CHUNK_BYTES = 16 << 20
_CONNECTIONS = 4
FIRST_READ = 1 << 18
"""Bytes of the first read: the header of a 7B model is about 40 kB."""


@dataclass
class RangedFile:
    """A remote file and the tensors chosen from it.

    Attributes:
        url: where it is.
        file: its name.
        size: its bytes.
        entries: all its tensors, in the order of their bytes.
        chosen: names of the chosen ones, in the order of their bytes.
    """

    url: str
    file: str
    size: int
    entries: dict[str, TensorEntry]
    chosen: list[str] = field(default_factory=list)

    @classmethod
    def open(cls, url: str, file: str, size: int) -> "RangedFile":
        """Read the header of a safetensors file.

        Raises:
            UserError: the remote file is not a safetensors file, or the server has no ranged reads.
        """
        start = read_range(url, 0, min(size, FIRST_READ))
        end = 8 + header_length(start[:8], file)
        if end > len(start):
            start += read_range(url, len(start), min(size, end))
        return cls(url, file, size, parse_header(start[8:end], file))

    def choose(self, names: Iterable[str]) -> None:
        """Choose tensors."""
        wanted = set(names)
        self.chosen = [name for name in self.entries if name in wanted]

    @property
    def chosen_bytes(self) -> int:
        """Bytes of the chosen tensors."""
        return sum(self.entries[name].end - self.entries[name].begin for name in self.chosen)


def fetch_tensors(remote: RangedFile, folder: Path) -> Path:
    """Write the chosen tensors into a safetensors file of their own; an interrupted call is continued.

    Returns:
        The file, named after the remote file and the choice of tensors.

    Raises:
        UserError: the server's answers do not fit the file.
    """
    digest = hashlib.sha256("\n".join(remote.chosen).encode()).hexdigest()[:12]
    path = folder / f"{Path(remote.file).stem}~{digest}.safetensors"
    if path.is_file():
        return path
    header = build_header(
        {name: (remote.entries[name].dtype, remote.entries[name].shape) for name in remote.chosen}, {"format": "pt"}
    )
    partial = path.with_suffix(".incomplete")
    with open(partial, "a+b") as file:
        # Another process may be fetching the same: wait for it, and continue where it stopped if it died.
        fcntl.flock(file, fcntl.LOCK_EX)
        if path.is_file():
            return path
        file.seek(0)
        if file.read(len(header)) != header:
            file.truncate(0)
            file.write(header)
        done = file.seek(0, os.SEEK_END) - len(header)
        with Progress(f"download {remote.file}", remote.chosen_bytes, "B") as progress:
            progress.update(done)
            for data in read_ahead(remote.url, _chunks(remote, skip=done)):
                file.write(data)
                progress.update(len(data))
        file.flush()
        os.replace(partial, path)
    return path


def _chunks(remote: RangedFile, skip: int) -> Iterator[tuple[int, int]]:
    """Byte ranges of the chosen tensors, neighbours joined, the first ``skip`` bytes left out."""
    runs: list[list[int]] = []
    for entry in (remote.entries[name] for name in remote.chosen):
        if runs and runs[-1][1] == entry.begin:
            runs[-1][1] = entry.end
        else:
            runs.append([entry.begin, entry.end])
    for begin, end in runs:
        skipped = min(skip, end - begin)
        skip -= skipped
        for start in range(begin + skipped, end, _CHUNK_BYTES):
            yield start, min(start + _CHUNK_BYTES, end)


def read_ahead(url: str, ranges: Iterable[tuple[int, int]]) -> Iterator[bytes]:
    """The ranges' bytes in order, a few requests at a time."""
    with ThreadPoolExecutor(max_workers=_CONNECTIONS) as pool:
        waiting: deque[Future[bytes]] = deque()
        try:
            for start, end in ranges:
                waiting.append(pool.submit(read_range, url, start, end))
                if len(waiting) == _CONNECTIONS:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def range_url(repository: str, file: str, revision: str) -> str:
    """Address of a file of the hub."""
    from huggingface_hub import hf_hub_url

    return hf_hub_url(repository, file, revision=revision)


def read_range(url: str, start: int, end: int) -> bytes:
    """Bytes ``start`` to ``end`` (not included) of a file of the hub.

    Raises:
        UserError: the server sends something else.
    """
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_backoff

    headers = {**build_hf_headers(), "Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
    response = http_backoff("GET", url, headers=headers, timeout=60)
    hf_raise_for_status(response)
    if response.status_code != 206 or len(response.content) != end - start:
        raise UserError(
            f"{url}: asked for bytes {start} to {end}, got status {response.status_code} with"
            f" {len(response.content)} bytes; download the repository and give its folder with --ref"
        )
    return response.content
