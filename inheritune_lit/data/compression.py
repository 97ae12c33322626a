"""Source files as plain bytes, whatever compresses them, in bounded memory."""

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
from typing import Any, BinaryIO

from inheritune_lit.errors import UserError
from inheritune_lit.io.reading import open_regular

COMPRESSIONS = (".gz", ".zst", ".zstd", ".xz", ".bz2")
_CHUNK = 1 << 9  # zstd expands these to 16 MB at most, which are held in memory
_MOST_AT_ONCE = (1 << 20,)  # bytes that lzma and bz2 give at once: 45 bytes of bz2 may stand for 46 MB
_MAX_MEMORY = max(1 << 27, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 16)
"""Of one decompressor; zstd's own limit is the 128 MiB, which files of its --long modes exceed."""


@contextmanager
def open_bytes(path: Path) -> Iterator[tuple[io.BufferedReader, BinaryIO]]:
    """Yields a file's decompressed stream, and the file itself, whose position tells how far reading has come.

    A file that cannot be read, is cut short or damaged is a ``UserError``, also where reading finds it.
    """
    from zstandard import ZstdError

    try:
        with open_regular(path) as file:
            raw = _decompressed(file, path.suffix.lower())
            yield (io.BufferedReader(raw, 1 << 20) if raw else file), file  # type: ignore[misc]
    except (EOFError, OSError, zlib.error, lzma.LZMAError, ZstdError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise UserError(f"cannot read {path}: {error.strerror}") from error
        if "memory" in str(error).lower():
            raise UserError(
                f"{path} needs more than {_MAX_MEMORY >> 20} MiB of memory to decompress; "
                "compress it again with a smaller window, such as `zstd` without --long"
            ) from error
        raise UserError(f"{path} is cut short or damaged ({error}); fetch it again") from error


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
    """Decompressed bytes of frames, one behind the other; where one is cut off, an ``EOFError``.

    The libraries' own streams end without a word there (zstandard), or have no limit on memory (lzma).
    """

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
