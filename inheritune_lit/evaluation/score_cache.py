"""Results kept on disk, so that a killed evaluation continues."""

import hashlib
import json
import logging
import zlib
from pathlib import Path
from typing import Any

from inheritune_lit.errors import UserError

logger = logging.getLogger(__name__)


class ScoreCache:
    """Results of one model under one way of scoring, in an append-only file.

    Each line is a CRC-32 and a JSON pair of key and result. A line that does not fit its CRC, such as the last one of a
    killed process, is passed over. The file's name is the hash of everything that changes a result, so another
    checkpoint, tokenizer or setting never finds these.

    Args:
        folder: holds the files of any number of models; None keeps nothing.
        identity: everything that changes a result.
        writes: whether this process adds to the file.

    Raises:
        UserError: the folder cannot be made or read.
    """

    def __init__(self, folder: Path | None, identity: dict[str, Any], writes: bool = True) -> None:
        self._results: dict[str, Any] = {}
        self._file = None
        if folder is None:
            return
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        path = folder / f"scores-{digest[:32]}.jsonl"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            content = path.read_bytes() if path.is_file() else b""
            self._read(path, content)
            if writes:
                self._file = path.open("ab")
                if content and not content.endswith(b"\n"):
                    self._file.write(b"\n")
        except OSError as error:
            raise UserError(f"cannot use the score cache {folder}: {error.strerror}; give another folder") from error

    def _read(self, path: Path, content: bytes) -> None:
        damaged = 0
        lines = content.split(b"\n")
        for number, line in enumerate(lines):
            if not line:
                continue
            crc, _, pair = line.partition(b" ")
            if crc == _crc(pair):
                key, result = json.loads(pair)
                self._results[key] = result
            elif number < len(lines) - 1:  # the last line may be one that was cut short by a kill
                damaged += 1
        if damaged:
            logger.warning("%d damaged lines of %s are passed over and scored again", damaged, path)

    def get(self, key: str) -> Any:
        """A result, None where there is none."""
        return self._results.get(key)

    def add(self, results: dict[str, Any]) -> None:
        """Keep results; they survive the end of this process from now on."""
        self._results |= results
        if self._file is not None:
            pairs = [json.dumps(pair).encode() for pair in results.items()]
            self._file.write(b"".join(_crc(pair) + b" " + pair + b"\n" for pair in pairs))
            self._file.flush()


def request_key(kind: str, *parts: bytes) -> str:
    """Name of one request: what is asked, and the ids or settings that it is asked about."""
    digest = hashlib.blake2b(kind.encode(), digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()


def _crc(pair: bytes) -> bytes:
    return f"{zlib.crc32(pair):08x}".encode()
