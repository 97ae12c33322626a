"""Compressed files as streams that notice when they are cut short."""

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from inheritune_lit.errors import UserError

_CHUNK = 1 << 14  # of compressed bytes: what one of them expands to is held in memory


class _ZstdReader(io.RawIOBase):
    """Decompressed bytes of one or more zstd frames.

    zstandard's own stream ends quietly where a frame is cut off; this raises ``EOFError``.
    """

    def __init__(self, file: BinaryIO) -> None:
        from zstandard import ZstdDecompressor

        # Frames of the --long modes need windows beyond the default limit.
        self._new_frame = ZstdDecompressor(max_window_size=1 << 31).decompressobj
        self._file, self._ready = file, memoryview(b"")
        self._frame: Any = None  # of a type that zstandard does not export

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        compressed = b""
        while not self._ready:
            compressed = compressed or self._file.read(_CHUNK)
            if not compressed:
                if self._frame is not None:
                    raise EOFError("the last frame is cut off")
                return 0
            frame = self._frame or self._new_frame()
            self._ready = memoryview(frame.decompress(compressed))
            compressed = frame.unused_data if frame.eof else b""
            self._frame = None if frame.eof else frame
            if compressed:  # the next frame is read on the next call
                self._file.seek(-len(compressed), io.SEEK_CUR)
                compressed = b""
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count


@contextmanager
def open_lines(path: Path) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """Open a plain, ``.gz`` or ``.zst`` file.

    Yields:
        The decompressed stream, and the file itself, whose position tells how far reading has come.

    Raises:
        UserError: the file cannot be read, is cut short or damaged; also from inside the block.
    """
    damaged: tuple[type[Exception], ...] = (EOFError, zlib.error, gzip.BadGzipFile)
    if path.suffix == ".zst":
        from zstandard import ZstdError

        damaged = (*damaged, ZstdError)
    try:
        with path.open("rb") as file:
            if path.suffix == ".gz":
                with gzip.GzipFile(fileobj=file) as stream:
                    yield io.BufferedReader(stream, 1 << 20), file
            elif path.suffix == ".zst":
                yield io.BufferedReader(_ZstdReader(file), 1 << 20), file
            else:
                yield file, file
    except damaged as error:
        raise UserError(f"{path} is cut short or damaged ({error}); fetch it again") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
