"""A file of ``torch.save`` on the hub, opened without its tensors' bytes.

Such a file is an uncompressed zip archive: the pickled state dict, a record for every storage, and the directory at the
end. Directory and state dict are put into an otherwise empty (sparse) local file of the same size, which ``torch.load``
maps and unpickles as carefully as ever. Where a storage's bytes would be, its number is written: it shows which
record a tensor belongs to.
"""

import io
import struct
import tempfile
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from inheritune_lit.checkpoint import byte_ranges as ranged
from inheritune_lit.checkpoint.byte_ranges import RangedFile, read_ahead, read_range
from inheritune_lit.checkpoint.safetensors_files import DTYPE_NAMES, MAX_HEADER_BYTES, TensorEntry
from inheritune_lit.checkpoint.weights import load_torch_file
from inheritune_lit.errors import UserError

_ZIP_HEADER = struct.Struct("<26xHH")
"""Up to the lengths of name and extra field, which come before a record's bytes."""
_END_BYTES = 22
"""Of the end of an archive without comment."""
_NUMBER = struct.Struct("<H")


@dataclass(frozen=True)
class _Record:
    name: str
    start: int
    end: int
    nbytes: int
    stored: bool

    @property
    def is_storage(self) -> bool:
        return "/data/" in self.name


@dataclass
class RangedTorchFile(RangedFile):
    """Entries count from the record's header until they are chosen: what lies between header and bytes is unknown.

    Attributes:
        records: the record of every tensor.
    """

    records: dict[str, _Record] = field(default_factory=dict)

    def choose(self, names: Iterable[str]) -> None:
        """Choose tensors and read where their bytes begin.

        Raises:
            UserError: the directory and the records disagree.
        """
        super().choose(names)
        starts = sorted({self.records[name].start for name in self.chosen})
        headers = read_ahead(self.url, ((start, start + _ZIP_HEADER.size) for start in starts))
        shifts = {}
        for start, header in zip(starts, headers, strict=True):
            shifts[start] = _ZIP_HEADER.size + sum(_ZIP_HEADER.unpack(header))
        for name in self.chosen:
            entry, record = self.entries[name], self.records[name]
            shift = shifts[record.start]
            if not record.start + shift + record.nbytes <= record.end:
                raise UserError(f"{self.file} is damaged: record {record.name} overlaps the next; give another --ref")
            self.entries[name] = replace(entry, begin=entry.begin + shift, end=entry.end + shift)


def open_torch_file(url: str, file: str, size: int, folder: Path) -> RangedTorchFile | None:
    """Find out what a remote file of ``torch.save`` holds.

    Args:
        url: where it is.
        file: its name.
        size: its bytes.
        folder: for the sparse file, which is removed.

    Returns:
        None where its tensors cannot be had by ranges: the file is old and not an archive, or a view is not contiguous.

    Raises:
        UserError: the file is damaged or holds Python objects other than tensors.
    """
    directory = _read_directory(url, file, size)
    if directory is None:
        return None
    records, directory_start = directory
    storages = [record for record in records if record.is_storage]
    parts = [(record.start, record.end) for record in records if not record.is_storage] + [(directory_start, size)]
    if (
        len(storages) > 1 << 8 * _NUMBER.size
        or not all(record.stored for record in records)
        or sum(end - start for start, end in parts) > MAX_HEADER_BYTES
    ):
        return None
    with tempfile.TemporaryDirectory(prefix="probe-", dir=folder) as name:
        path = Path(name) / file
        with open(path, "wb") as sparse:
            sparse.truncate(size)
            for start, end in parts:
                sparse.seek(start)
                sparse.write(read_range(url, start, end))
            for number, record in enumerate(storages):
                sparse.seek(record.start + _ZIP_HEADER.size)
                sparse.write(_NUMBER.pack(number))
            # By this torch knows an archive.
            sparse.seek(0)
            sparse.write(b"PK\3\4")
        found = {}
        for key, tensor in load_torch_file(path, label=file).items():
            if not isinstance(tensor, torch.Tensor):
                raise UserError(f"{file}: {key} is a {type(tensor).__name__}, not a tensor; give another --ref")
            placed = _place(tensor, storages, file)
            if placed is None:
                return None
            found[key] = placed
    ordered = sorted(found.items(), key=lambda item: item[1][0].begin)
    entries = {key: entry for key, (entry, _) in ordered}
    return RangedTorchFile(url, file, size, entries, records={key: record for key, (_, record) in ordered})


def _read_directory(url: str, file: str, size: int) -> tuple[list[_Record], int] | None:
    """Records in the order of their bytes, and where the directory begins; None where the file is not an archive."""
    if size < _END_BYTES:
        return None
    tail_start = max(0, size - ranged.FIRST_READ)
    remote = _Remote(url, size, tail_start, read_range(url, tail_start, size))
    if remote.peek(size - _END_BYTES, 4) != b"PK\5\6" and read_range(url, 0, min(size, 2)) != b"PK":
        return None
    try:
        with zipfile.ZipFile(remote) as archive:
            infos, end = sorted(archive.infolist(), key=lambda info: info.header_offset), archive.start_dir
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError, struct.error) as error:
        raise UserError(f"{file} is damaged ({error}); give another --ref") from error
    ends = [*(info.header_offset for info in infos[1:]), end]
    records = [
        _Record(info.filename, info.header_offset, stop, info.compress_size, info.compress_type == zipfile.ZIP_STORED)
        for info, stop in zip(infos, ends, strict=True)
    ]
    fit = all(record.start + _ZIP_HEADER.size + record.nbytes <= record.end for record in records)
    if not records or records[0].start < 0 or end > size or not fit:
        raise UserError(f"{file} is damaged: its directory names records that overlap; give another --ref")
    return records, end


def _place(tensor: torch.Tensor, storages: list[_Record], file: str) -> tuple[TensorEntry, _Record] | None:
    """A tensor's bytes, counted as if they followed the first part of the record's header; None where unknown."""
    storage = tensor.untyped_storage()
    if storage.nbytes() < _NUMBER.size or not tensor.is_contiguous() or tensor.dtype not in DTYPE_NAMES:
        return None
    (number,) = _NUMBER.unpack(bytes(storage[: _NUMBER.size]))
    record = storages[number] if number < len(storages) else None
    if record is None or record.nbytes != storage.nbytes():
        raise UserError(f"{file} is damaged: its state dict and its records disagree; give another --ref")
    begin = record.start + tensor.storage_offset() * tensor.element_size()
    return TensorEntry(tensor.dtype, tuple(tensor.shape), begin, begin + tensor.nbytes), record


class _Remote(io.RawIOBase):
    """A remote file for reading; its end has been read already."""

    def __init__(self, url: str, size: int, tail_start: int, tail: bytes) -> None:
        self._url, self._size, self._tail_start, self._tail = url, size, tail_start, tail
        self._position = 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if self._position < 0:
            raise OSError(22, "seek before the start of the file")
        return self._position

    def read(self, count: int = -1) -> bytes:
        data = self.peek(self._position, count)
        self._position += len(data)
        return data

    def peek(self, start: int, count: int) -> bytes:
        """Bytes from ``start`` on, fewer at the end of the file; all of the rest where ``count`` is negative."""
        end = self._size if count < 0 else min(start + count, self._size)
        if start >= self._tail_start:
            return self._tail[start - self._tail_start : end - self._tail_start]
        return read_range(self._url, start, end)
