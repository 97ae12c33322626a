"""Chosen tensors of a file on the hub, by ranged reads, into a smaller safetensors file.

The header of a safetensors file says where they are. Of a file of ``torch.save``, directory and state dict are put into
an otherwise empty (sparse) local file of the same size, which ``torch.load`` maps and unpickles as carefully as ever.
Where a storage's bytes would be, its number is written: it shows which record a tensor belongs to.
"""

import fcntl
import hashlib
import io
import os
import struct
import tempfile
import zipfile
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from inheritune_lit.checkpoint import formats
from inheritune_lit.checkpoint.weights import load_torch_file
from inheritune_lit.errors import UserError
from inheritune_lit.io.progress import Progress

_CHUNK_BYTES = 16 << 20
_CONNECTIONS = 4
FIRST_READ = 1 << 18  # bytes of the first read: the header of a 7B model is about 40 kB
_NUMBER = struct.Struct("<H")


@dataclass(frozen=True)
class _Record:
    """A record of a file of ``torch.save``: its header begins at ``start``, its bytes are over by ``end``."""

    name: str
    start: int
    end: int
    nbytes: int


@dataclass
class RemoteFile:
    """A remote file of this size, all its tensors and the chosen ones, both in the order of their bytes.

    Where a tensor is in a record, its entry counts from the end of the header's first part: how long the second part is
    becomes known when the tensor is chosen.
    """

    url: str
    file: str
    size: int
    entries: dict[str, formats.TensorEntry]
    records: dict[str, _Record] = field(default_factory=dict)
    chosen: dict[str, formats.TensorEntry] = field(default_factory=dict)

    def choose(self, names: Iterable[str]) -> None:
        """Choose tensors, and read where their bytes begin where that is unknown."""
        wanted = set(names)
        self.chosen = {name: entry for name, entry in self.entries.items() if name in wanted}
        records = {name: self.records[name] for name in self.chosen if name in self.records}
        starts = sorted({record.start for record in records.values()})
        headers = _read_ahead(self.url, ((start, start + formats.ZIP_HEADER.size) for start in starts))
        shifts = {start: sum(formats.ZIP_HEADER.unpack(header)) for start, header in zip(starts, headers, strict=True)}
        for name, record in records.items():
            entry, shift = self.entries[name], shifts[record.start]
            if record.start + formats.ZIP_HEADER.size + shift + record.nbytes > record.end:
                raise UserError(f"{self.file} is damaged: record {record.name} overlaps the next; give another --ref")
            self.chosen[name] = replace(entry, begin=entry.begin + shift)

    @property
    def chosen_bytes(self) -> int:
        """Bytes of the chosen tensors."""
        return sum(entry.nbytes for entry in self.chosen.values())


def open_safetensors(url: str, file: str, size: int) -> RemoteFile:
    """Read the header of a remote safetensors file, which is checked."""
    start = read_range(url, 0, min(size, FIRST_READ))
    end = 8 + formats.header_length(start[:8], file)
    if end > len(start):
        start += read_range(url, len(start), min(size, end))
    return RemoteFile(url, file, size, formats.parse_header(start[8:end], file))


def fetch_tensors(remote: RemoteFile, folder: Path) -> Path:
    """Write the chosen tensors into a file named after the remote one and the choice; a stopped call is continued."""
    digest = hashlib.sha256("\n".join(remote.chosen).encode()).hexdigest()[:12]
    path = folder / f"{Path(remote.file).stem}~{digest}.safetensors"
    if path.is_file():
        return path
    header, _ = formats.build_header(remote.chosen)
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
            for data in _read_ahead(remote.url, _chunks(remote, skip=done)):
                file.write(data)
                progress.update(len(data))
        file.flush()
        os.replace(partial, path)
    return path


def _chunks(remote: RemoteFile, skip: int) -> Iterator[tuple[int, int]]:
    """Byte ranges of the chosen tensors, neighbours joined, the first ``skip`` bytes left out."""
    runs: list[list[int]] = []
    for entry in remote.chosen.values():
        begin = runs.pop()[0] if runs and runs[-1][1] == entry.begin else entry.begin
        runs.append([begin, entry.end])
    for begin, end in runs:
        skipped = min(skip, end - begin)
        skip -= skipped
        for start in range(begin + skipped, end, _CHUNK_BYTES):
            yield start, min(start + _CHUNK_BYTES, end)


def _read_ahead(url: str, ranges: Iterable[tuple[int, int]]) -> Iterator[bytes]:
    """The ranges' bytes in order, a few requests at a time."""
    with ThreadPoolExecutor(max_workers=_CONNECTIONS) as pool:
        waiting: deque[Future[bytes]] = deque()
        for start, end in ranges:
            waiting.append(pool.submit(read_range, url, start, end))
            if len(waiting) == _CONNECTIONS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def read_range(url: str, start: int, end: int) -> bytes:
    """Bytes ``start`` to ``end`` (not included) of a file of the hub; any other answer is a ``UserError``."""
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_backoff

    headers = {**build_hf_headers(), "Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
    response = http_backoff("GET", url, headers=headers, timeout=60)
    hf_raise_for_status(response)
    if response.status_code != 206 or len(response.content) != end - start:
        problem = f"asked for bytes {start} to {end}, got status {response.status_code}, {len(response.content)} bytes"
        raise UserError(f"{url}: {problem}; download the repository and give its folder with --ref")
    return response.content


class _SparseFile(io.FileIO):
    """A local file of a remote one's size, whose bytes are fetched when they are read; those at the end at once."""

    def __init__(self, path: Path, url: str, size: int) -> None:
        super().__init__(path, "w+")
        self.url, self.size, self.fetched_from = url, size, max(0, size - FIRST_READ)
        self.truncate(size)
        self.fetch(self.fetched_from, size)

    def fetch(self, start: int, end: int) -> None:
        if start < end:
            os.pwrite(self.fileno(), read_range(self.url, start, end), start)

    def read(self, count: int | None = -1) -> bytes:
        start = self.tell()
        end = self.size if count is None or count < 0 else start + count
        self.fetch(start, min(end, self.fetched_from))
        return super().read(count) or b""


def open_torch_file(url: str, file: str, size: int, folder: Path) -> RemoteFile | None:
    """Find what a remote file of ``torch.save`` holds, by a sparse file in ``folder``; damage is a ``UserError``.

    None where tensors cannot be had by ranges: the file is old and not an archive, or a view is not contiguous.
    """
    with tempfile.TemporaryDirectory(prefix="probe-", dir=folder) as name:
        path = Path(name) / file
        with _SparseFile(path, url, size) as sparse:
            records = _read_directory(sparse, file)
            if records is None:
                return None
            storages = [record for record in records if "/data/" in record.name]
            others = [record for record in records if "/data/" not in record.name]
            header_bytes = sum(record.end - record.start for record in others)
            if len(storages) > 1 << 8 * _NUMBER.size or header_bytes > formats.MAX_HEADER_BYTES:
                return None
            for record in others:
                sparse.fetch(record.start, min(record.end, sparse.fetched_from))
            for number, record in enumerate(storages):
                os.pwrite(sparse.fileno(), bytes(formats.ZIP_HEADER.size) + _NUMBER.pack(number), record.start)
            # By this torch knows an archive.
            os.pwrite(sparse.fileno(), b"PK\3\4", 0)
        entries, record_of = dict[str, formats.TensorEntry](), dict[str, _Record]()
        for key, tensor in load_torch_file(path, label=file).items():
            storage = tensor.untyped_storage()
            if storage.nbytes() < _NUMBER.size or not tensor.is_contiguous():
                return None
            (number,) = _NUMBER.unpack(bytes(storage[: _NUMBER.size]))
            if number >= len(storages) or storages[number].nbytes != storage.nbytes():
                raise UserError(f"{file} is damaged: its state dict and its records disagree; give another --ref")
            record = record_of[key] = storages[number]
            begin = record.start + formats.ZIP_HEADER.size + tensor.storage_offset() * tensor.element_size()
            entries[key] = formats.TensorEntry(tuple(tensor.shape), tensor.dtype, begin)
    in_order = dict(sorted(entries.items(), key=lambda item: item[1].begin))
    return RemoteFile(url, file, size, in_order, record_of)


def _read_directory(remote: _SparseFile, file: str) -> list[_Record] | None:
    """Records in the order of their bytes; None where the file is not an archive, or a compressed one."""
    try:
        with zipfile.ZipFile(remote) as archive:
            infos, end = sorted(archive.infolist(), key=lambda info: info.header_offset), archive.start_dir
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError, struct.error) as error:
        remote.seek(0)
        if remote.read(2) != b"PK":
            return None
        raise UserError(f"{file} is damaged ({error}); give another --ref") from error
    ends = [*(info.header_offset for info in infos[1:]), end]
    placed = zip(infos, ends, strict=True)
    records = [_Record(info.filename, info.header_offset, stop, info.compress_size) for info, stop in placed]
    fit = all(record.start + formats.ZIP_HEADER.size + record.nbytes <= record.end for record in records)
    if not records or records[0].start < 0 or end > remote.size or not fit:
        raise UserError(f"{file} is damaged: its directory names records that overlap; give another --ref")
    return records if all(info.compress_type == zipfile.ZIP_STORED for info in infos) else None
