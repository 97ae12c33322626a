"""What source files come in, compressed streams and parquet, opened in bounded memory."""

import bz2
import gzip
import io
import lzma
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from inheritune_lit.errors import UserError, first_line
from inheritune_lit.io.reading import open_regular

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

COMPRESSIONS = (".gz", ".zst", ".zstd", ".xz", ".bz2")
_CHUNK = 1 << 9  # zstd expands these to 16 MB at most, which are held in memory
_MOST_AT_ONCE = (1 << 20,)  # bytes that lzma and bz2 give at once: 45 bytes of bz2 may stand for 46 MB
_MAX_MEMORY = max(1 << 27, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 16)
"""Of one decompressor; zstd's own limit is the 128 MiB, which files of its --long modes exceed."""
_BATCH_ROWS, _BATCH_BYTES = 16, 1 << 26
_MAX_EXPANSION, _HARMLESS_BYTES = 200, 1 << 28


@contextmanager
def open_bytes(path: Path) -> Iterator[tuple[io.BufferedReader, BinaryIO]]:
    """Yields a file's decompressed stream and the file, whose position is the progress; damage is a ``UserError``."""
    from zstandard import ZstdError

    try:
        with open_regular(path) as file:
            raw = _decompressed(file, path.suffix.lower())
            yield (io.BufferedReader(raw, 1 << 20) if raw else file), file  # type: ignore[misc]
    except (EOFError, OSError, zlib.error, lzma.LZMAError, ZstdError) as error:
        _refuse_unreadable(path, error)
        if "memory" in str(error).lower():
            needs = f"{path} needs more than {_MAX_MEMORY >> 20} MiB of memory to decompress"
            remedy = "compress it again with a smaller window, such as `zstd` without --long"
            raise UserError(f"{needs}; {remedy}") from error
        raise UserError(f"{path} is cut short or damaged ({error}); fetch it again") from error


def _refuse_unreadable(path: Path, error: Exception) -> None:
    if isinstance(error, OSError) and error.errno is not None:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


def _decompressed(file: BinaryIO, ending: str) -> io.RawIOBase | None:
    """The stream of a compressed file, None for a plain one."""
    from zstandard import ZstdDecompressor

    if ending == ".gz":
        return gzip.GzipFile(fileobj=file)  # type: ignore[return-value]
    if ending in (".zst", ".zstd"):
        return _Frames(file, ZstdDecompressor(max_window_size=min(_MAX_MEMORY, 1 << 31)).decompressobj)
    if ending == ".xz":
        return _Frames(file, partial(lzma.LZMADecompressor, memlimit=_MAX_MEMORY), _MOST_AT_ONCE)
    return _Frames(file, bz2.BZ2Decompressor, _MOST_AT_ONCE) if ending == ".bz2" else None


class _Frames(io.RawIOBase):
    """Decompressed bytes of frames; the libraries' streams hide a cut-off one (zstandard) or have no limit (lzma)."""

    def __init__(self, file: BinaryIO, new_frame: Callable[[], Any], limit: tuple[int, ...] = ()) -> None:
        self._file, self._new_frame, self._limit, self._ready = file, new_frame, limit, memoryview(b"")
        self._frame: Any = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self._ready:
            has_more = not getattr(self._frame, "needs_input", True)
            compressed = b"" if has_more else self._file.read(_CHUNK)
            if not compressed and not has_more:
                if self._frame is not None:
                    raise EOFError("the last frame is cut off")
                return 0
            if self._frame is None and not (compressed := compressed.lstrip(b"\0")):  # padding between frames
                continue
            frame = self._frame or self._new_frame()
            self._ready = memoryview(frame.decompress(compressed, *self._limit))
            self._frame = None if frame.eof else frame
            if frame.eof and frame.unused_data:  # the next frame is read on the next call
                self._file.seek(-len(frame.unused_data), io.SEEK_CUR)
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count


@contextmanager
def open_parquet(path: Path) -> Iterator["ParquetFile"]:
    """Opens a parquet file; whatever cannot be read in it, also inside the block, is a ``UserError``."""
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        open_regular(path).close()
        with ParquetFile(path, buffer_size=1 << 20) as file:  # else a whole column of a row group is read at once
            yield file
    except (ArrowException, OSError, ValueError) as error:
        _refuse_unreadable(path, error)
        raise UserError(f"{path} cannot be read as parquet ({first_line(error)}); fetch it again") from error


def row_group_bytes(file: "ParquetFile") -> list[int]:
    """Returns the stored bytes of each row group."""
    groups = map(file.metadata.row_group, range(file.metadata.num_row_groups))
    return [sum(group.column(n).total_compressed_size for n in range(group.num_columns)) for group in groups]


def group_rows(
    file: "ParquetFile", path: Path, group: int, columns: list[str] | None
) -> Iterator[dict[str, Any] | UnicodeDecodeError]:
    """Yields rows of a group, or why one is not text, as parquet allows; one that expands by far is a ``UserError``."""
    record = file.metadata.row_group(group)
    chunks = [record.column(number) for number in range(record.num_columns)]
    expanded = sum(chunk.total_uncompressed_size for chunk in chunks)
    if expanded > max(_HARMLESS_BYTES, _MAX_EXPANSION * sum(chunk.total_compressed_size for chunk in chunks)):
        raise UserError(f"row group {group} of {path} expands to {expanded:,} bytes; write it with smaller row groups")
    fitting = _BATCH_BYTES * record.num_rows // max(1, expanded)
    for batch in file.iter_batches(max(1, min(_BATCH_ROWS, fitting)), row_groups=[group], columns=columns):
        for number in range(batch.num_rows):
            try:
                yield batch.slice(number, 1).to_pylist()[0]
            except UnicodeDecodeError as error:
                yield error


def text_column(file: "ParquetFile", path: Path, name: str) -> str:
    """Returns the name of a top-level or nested column, checked."""
    import pyarrow as pa

    schema = file.schema_arrow
    if name in schema.names:
        kind = schema.field(name).type
        values = kind.value_type if pa.types.is_dictionary(kind) else kind
        if values not in (pa.string(), pa.large_string(), pa.string_view()):
            raise UserError(f"column {name!r} of {path} holds {kind}, not text; name another with --text_field")
    elif name not in {column.path for column in file.schema}:
        have = ", ".join(schema.names)
        raise UserError(f"{path} has no column {name!r}, only {have}; name the one to use with --text_field")
    return name
