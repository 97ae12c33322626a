"""Results of requests: kept on disk, so that a killed evaluation continues, and computed by processes together."""

import hashlib
import json
import logging
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor

from inheritune_lit.errors import UserError
from inheritune_lit.io.progress import Progress

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ranks:
    """The processes that share work; by default this one alone.

    Each one gets all requests and does a share. Results are put together by adding tensors in which every entry is one
    process's and 0 elsewhere, so lm-eval is told of one process only, tasks need no care, and shares need not be equal.

    ``add_up`` sums a tensor over them and gives it back on the device that it came from.
    """

    rank: int = 0
    world: int = 1
    add_up: Callable[[Tensor], Tensor] = field(default=lambda tensor: tensor)
    device: torch.device = torch.device("cpu")  # noqa: RUF009 (a constant)

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that says and writes what all of them found."""
        return self.rank == 0

    @classmethod
    def of(cls, fabric: Fabric) -> "Ranks":
        """The processes of a fabric."""
        if fabric.world_size == 1:
            return cls(device=fabric.device)

        def add_up(tensor: Tensor) -> Tensor:
            summed = fabric.all_reduce(tensor.to(fabric.device), reduce_op="sum")
            assert isinstance(summed, Tensor)
            return summed.to(tensor.device)

        return cls(fabric.global_rank, fabric.world_size, add_up, fabric.device)


class ScoreCache:
    """Results of one model under one way of scoring, in an append-only file of a folder; None keeps nothing.

    Each line is a CRC-32 and a JSON pair of key and result. A line that does not fit its CRC, such as the last one of a
    killed process, is passed over. The file's name is the hash of ``identity``, everything that changes a result, so
    another checkpoint, tokenizer or setting never finds these. ``writes``: whether this process adds to the file. A
    folder that cannot be made or read is a ``UserError``.
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
            if writes:
                self._file = path.open("ab")
                if content and not content.endswith(b"\n"):
                    self._file.write(b"\n")
        except OSError as error:
            raise UserError(f"cannot use the score cache {folder}: {error.strerror}; give another folder") from error
        damaged = 0
        for line in content.split(b"\n")[:-1]:  # a kill may have cut the last one short
            crc, _, pair = line.partition(b" ")
            if crc == _crc(pair):
                key, self._results[key] = json.loads(pair)
            elif line:
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


@dataclass(frozen=True)
class SharedWork:
    """Requests whose results are in the cache or are computed by several processes, each of which gets all results.

    A result is a row of a tensor, and its first entry is 0 as long as there is no result.
    """

    cache: ScoreCache
    ranks: Ranks

    def find(self, names: list[str], empty_NW: Tensor, to_row: Callable[[Any], list[Any]]) -> tuple[Tensor, list[int]]:
        """Rows (N, W) of ``names``, by ``to_row`` where the first process has results, and the others' numbers."""
        for number, name in enumerate(names if self.ranks.is_first else []):
            if (result := self.cache.get(name)) is not None:
                row = to_row(result)
                empty_NW[number, : len(row)] = torch.tensor(row, dtype=empty_NW.dtype)
        rows_NW = self.ranks.add_up(empty_NW)
        return rows_NW, [number for number, first in enumerate(rows_NW[:, 0].tolist()) if not first]

    def compute(
        self,
        batches: list[list[int]],
        names: list[str],
        rows_NW: Tensor,
        rows_of: Callable[[list[int]], Tensor],
        from_row: Callable[[list[Any]], Any],
        progress: Progress,
    ) -> None:
        """Fill in the rows of requests and add their results to the cache; each process does one batch at a time.

        ``rows_of`` computes the rows of a batch, which has numbers of requests; ``from_row`` is the result in a row.
        Every process computes as many batches as the others, which a sharded model needs: spare ones repeat the last.
        """
        rank, world = self.ranks.rank, self.ranks.world
        for first in range(0, len(batches), world):
            now = batches[first : first + world]
            numbers = [number for batch in now for number in batch]
            own = rows_NW.new_zeros(len(numbers), rows_NW.shape[1])
            made = rows_of(now[min(rank, len(now) - 1)])
            if rank < len(now):
                start = sum(map(len, now[:rank]))
                own[start : start + len(made)] = made
            rows_NW[numbers] = made = self.ranks.add_up(own)
            results = map(from_row, made.tolist())
            self.cache.add({names[number]: result for number, result in zip(numbers, results, strict=True)})
            progress.update(len(numbers))
