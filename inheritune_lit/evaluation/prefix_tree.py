"""Token sequences packed so that beginnings they share are computed once: pure arithmetic, no model.

Sequences sorted by their ids are a depth-first walk through their prefix tree. A row of the walk lists the tree's nodes
in that order, so the nodes below a node stand directly behind it, and where they end says who may attend to it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

# Big-endian ids sort as bytes the way they sort as numbers.
_IDS = np.dtype(">u4")


def to_key(ids: Sequence[int]) -> bytes:
    """Token ids as bytes: small, hashable, and sorted like the ids."""
    return np.asarray(ids, dtype=_IDS).tobytes()


def to_ids(key: bytes) -> np.ndarray:
    """Token ids of a key, int64."""
    return np.frombuffer(key, dtype=_IDS).astype(np.int64)


def shared_lengths(keys: Sequence[bytes]) -> list[int]:
    """Number of first ids that each key shares with the one before it; 0 for the first."""
    shared = [0] * len(keys)
    for number, (before, key) in enumerate(pairwise(keys), start=1):
        common = min(len(before), len(key))
        differ = np.frombuffer(before[:common], dtype=np.uint32) != np.frombuffer(key[:common], dtype=np.uint32)
        shared[number] = int(differ.argmax()) if differ.any() else len(differ)
    return shared


def tree_size(keys: Sequence[bytes]) -> int:
    """Nodes of the prefix tree of sorted keys: the fewest tokens that must be computed."""
    return sum(map(len, keys)) // _IDS.itemsize - sum(shared_lengths(keys))


def split_rows(keys: Sequence[bytes], capacity: int) -> list[list[bytes]]:
    """Cut sorted, distinct keys into rows of at most ``capacity`` tokens; a longer sequence has a row of its own.

    A row begins with a whole sequence, so what it shares with the row before is computed again: rows lose little when
    ``capacity`` is several times the shared beginning.
    """
    rows: list[list[bytes]] = []
    tokens = 0
    for key, shared in zip(keys, shared_lengths(keys), strict=True):
        length = len(key) // _IDS.itemsize
        tokens += length - shared
        if not rows or tokens > capacity:
            rows.append([])
            tokens = length
        rows[-1].append(key)
    return rows


@dataclass(frozen=True)
class Row:
    """Part of a prefix tree; L nodes in depth-first order.

    A node's depth is the number of its ancestors, which is its token's position in its sequences. Its end is the index
    behind its last descendant: node x descends from y where y <= x < end[y]. ``paths`` are the nodes of each sequence,
    from its first token to its last.
    """

    tokens_L: np.ndarray
    depth_L: np.ndarray
    end_L: np.ndarray
    paths: list[np.ndarray]


def build_row(keys: Iterable[bytes]) -> Row:
    """The prefix tree of sorted, distinct keys."""
    keys = list(keys)
    tokens_L, depth_L, end_L = (np.empty(tree_size(keys), dtype=np.int64) for _ in range(3))
    paths: list[np.ndarray] = []
    path, at = np.empty(0, dtype=np.int64), 0
    for key, common in zip(keys, shared_lengths(keys), strict=True):
        ids = to_ids(key)
        new = len(ids) - common
        end_L[path[common:]] = at
        tokens_L[at : at + new] = ids[common:]
        depth_L[at : at + new] = np.arange(common, len(ids))
        path = np.concatenate([path[:common], np.arange(at, at + new)])
        paths.append(path)
        at += new
    end_L[path] = at
    return Row(tokens_L, depth_L, end_L, paths)
