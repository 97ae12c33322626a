"""Results of requests: kept on disk, so that a killed evaluation continues, and computed by processes together."""

import hashlib
import json
import logging
import math
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from inheritune_lit.errors import UserError
from inheritune_lit.evaluation.ranks import Ranks
from inheritune_lit.io.progress import Progress

logger = logging.getLogger(__name__)


class ScoreCache:
    """Results of one model under one way of scoring, in an append-only file.

    Each line is a CRC-32 and a JSON pair of key and result. A line that does not fit its CRC, such as the last one of a
    killed process, is passed over. The file's name is the hash of everything that changes a result, so another
    checkpoint, tokenizer or setting never finds these.

    A folder holds the files of any number of models, and None keeps nothing; one that cannot be made or read is a
    ``UserError``. ``identity`` is everything that changes a result; ``writes``, whether this process adds to the file.
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
            if path.exists() and not path.is_file():
                raise UserError(f"{path} is not a file; remove it, or give another folder")
            content = path.read_bytes() if path.is_file() else b""
            if writes:
                self._file = path.open("ab")
                if content and not content.endswith(b"\n"):
                    self._file.write(b"\n")
        except OSError as error:
            raise UserError(f"cannot use the score cache {folder}: {error.strerror}; give another folder") from error
        damaged, lines = 0, content.split(b"\n")
        for number, line in enumerate(lines):
            crc, _, pair = line.partition(b" ")
            if line and crc == _crc(pair) and (entry := _entry(pair)):
                self._results |= entry
            elif line and number < len(lines) - 1:  # the last line may be one that was cut short by a kill
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


def _entry(pair: bytes) -> dict[str, Any]:
    """Key and result, nothing where the line holds something else."""
    with suppress(ValueError, RecursionError):
        match json.loads(pair):
            case [str() as key, (list() | int() | float()) as result]:
                numbers = result if isinstance(result, list) else [result]
                if all(isinstance(each, int | float) and math.isfinite(each) for each in numbers):
                    return {key: result}
    return {}


def _crc(pair: bytes) -> bytes:
    return f"{zlib.crc32(pair):08x}".encode()


@dataclass(frozen=True)
class SharedWork:
    """Requests whose results are in the cache or are computed by several processes, each of which gets all results.

    A result is a row of a tensor, and its first entry is 0 as long as there is no result.
    """

    cache: ScoreCache
    ranks: Ranks

    def find(self, names: list[str], empty_NW: torch.Tensor, to_row: Callable[[Any], list[Any]]) -> torch.Tensor:
        """Rows (N, W) of what is on disk, as the first process sees it: the file may be growing.

        ``names`` are the requests' (``request_key``); ``to_row`` gives the beginning of a result's row.
        """
        for number, name in enumerate(names if self.ranks.is_first else []):
            if (result := self.cache.get(name)) is not None:
                row = to_row(result)
                empty_NW[number, : len(row)] = torch.tensor(row, dtype=empty_NW.dtype)
        return self.ranks.add_up(empty_NW)

    def compute(
        self,
        batches: list[list[int]],
        names: list[str],
        rows_NW: torch.Tensor,
        rows_of: Callable[[list[int]], torch.Tensor],
        from_row: Callable[[list[Any]], Any],
        progress: Progress,
    ) -> None:
        """Fill in the rows of requests and add their results to the cache; each process does one batch at a time.

        ``rows_of`` computes the rows of a batch, which has numbers of requests; ``from_row`` is the result in a row.
        """
        rank, world = self.ranks.rank, self.ranks.world
        for first in range(0, len(batches), world):
            now = batches[first : first + world]
            numbers = [number for batch in now for number in batch]
            own = rows_NW.new_zeros(len(numbers), rows_NW.shape[1])
            if rank < len(now):
                start = sum(map(len, now[:rank]))
                own[start : start + len(now[rank])] = rows_of(now[rank])
            rows_NW[numbers] = made = self.ranks.add_up(own)
            results = map(from_row, made.tolist())
            self.cache.add({names[number]: result for number, result in zip(numbers, results, strict=True)})
            progress.update(len(numbers))
