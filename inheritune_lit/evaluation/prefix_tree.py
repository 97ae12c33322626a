"""Token sequences packed so that beginnings they share are computed once: pure arithmetic, no model.

Sequences sorted by their ids are a depth-first walk through their prefix tree. A row of the walk lists the tree's nodes
in that order, so the nodes below a node stand directly behind it, and where they end says who may attend to it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

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
    for number in range(1, len(keys)):
        before, key = keys[number - 1], keys[number]
        common = min(len(before), len(key))
        differ = np.frombuffer(before[:common], dtype=np.uint32) != np.frombuffer(key[:common], dtype=np.uint32)
        at = int(differ.argmax()) if len(differ) else 0
        shared[number] = at if len(differ) and differ[at] else len(differ)
    return shared


def tree_size(keys: Sequence[bytes], shared: Sequence[int]) -> int:
    """Nodes of the prefix tree of sorted keys: the fewest tokens that must be computed."""
    return sum(len(key) for key in keys) // _IDS.itemsize - sum(shared)


def split_rows(keys: Sequence[bytes], shared: Sequence[int], capacity: int) -> list[range]:
    """Cut sorted keys into rows of at most ``capacity`` tokens; a longer sequence has a row of its own.

    A row begins with a whole sequence, so what it shares with the row before is computed again.

    Args:
        keys: sorted and distinct.
        shared: their ``shared_lengths``.
        capacity: tokens; rows lose little when it is several times the shared beginning.
    """
    rows: list[range] = []
    first = tokens = 0
    for number, key in enumerate(keys):
        length = len(key) // _IDS.itemsize
        added = length - shared[number]
        if number > first and tokens + added > capacity:
            rows.append(range(first, number))
            first, tokens = number, 0
        tokens += length if number == first else added
    if first < len(keys):
        rows.append(range(first, len(keys)))
    return rows


@dataclass(frozen=True)
class Row:
    """Part of a prefix tree; L nodes in depth-first order.

    Attributes:
        tokens_L: token of each node.
        depth_L: ancestors of each node, which is the token's position in its sequences.
        end_L: index behind the last descendant of each node. Node x descends from y where y <= x < end[y].
        paths: nodes of each sequence, from its first token to its last.
    """

    tokens_L: np.ndarray
    depth_L: np.ndarray
    end_L: np.ndarray
    paths: list[np.ndarray]


def build_row(keys: Iterable[bytes]) -> Row:
    """The prefix tree of sorted, distinct keys."""
    keys = list(keys)
    shared = shared_lengths(keys)
    sequences = [to_ids(key) for key in keys]
    size = tree_size(keys, shared)
    tokens_L, depth_L, end_L = (np.empty(size, dtype=np.int64) for _ in range(3))
    paths: list[np.ndarray] = []
    path, at = np.empty(0, dtype=np.int64), 0
    for ids, common in zip(sequences, shared, strict=True):
        end_L[path[common:]] = at
        new = len(ids) - common
        tokens_L[at : at + new] = ids[common:]
        depth_L[at : at + new] = np.arange(common, len(ids))
        path = np.concatenate([path[:common], np.arange(at, at + new)])
        paths.append(path)
        at += new
    end_L[path] = at
    return Row(tokens_L, depth_L, end_L, paths)
