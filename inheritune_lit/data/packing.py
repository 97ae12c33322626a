"""Where a domain's tokens are cut into samples."""

import numpy as np

# Documents an entry of the index: an eighth of a byte per document is kept in memory.
_STRIDE = 128
_CHUNK = _STRIDE << 13


class PackedCut:
    """Documents back to back, cut every ``block_size`` tokens whatever stands there.

    Sample s has the inputs [s * block_size, (s + 1) * block_size), so each token but the first is a target at most
    once; fewer than ``block_size`` + 1 tokens at the end are left out.

    Attributes:
        samples: how many there are.
        targets: targets in all of them.
    """

    def __init__(self, tokens: int, block_size: int) -> None:
        self.block_size = block_size
        self.samples = max(0, tokens - 1) // block_size
        self.targets = self.samples * block_size

    def spans(self, samples_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns where samples begin in the domain's tokens, and how many targets they have; int64, shape (B,)."""
        return samples_B * self.block_size, np.full(len(samples_B), self.block_size)


class SeparateCut:
    """Every document for itself: a sample holds tokens of one document only.

    A document of n tokens has n - 1 targets; its samples take ``block_size`` of them each, the last one what is left.
    So each token but a document's first is a target exactly once.

    ``lengths``, the tokens of each document, shape (documents,), are read in pieces and kept as they are. Attributes
    are those of ``PackedCut``.
    """

    def __init__(self, lengths: np.ndarray, block_size: int) -> None:
        self.block_size, self._lengths = block_size, lengths
        samples, tokens, self.targets = [np.zeros(1, dtype=np.int64)], [np.zeros(1, dtype=np.int64)], 0
        for first in range(0, len(lengths), _CHUNK):
            some = lengths[first : first + _CHUNK].astype(np.int64)
            starts = np.arange(0, len(some), _STRIDE)
            samples.append(np.add.reduceat(self._samples_of(some), starts))
            tokens.append(np.add.reduceat(some, starts))
            self.targets += int(np.maximum(some - 1, 0).sum())
        # Samples and tokens before every _STRIDE-th document.
        self._samples, self._tokens = np.cumsum(np.concatenate(samples)), np.cumsum(np.concatenate(tokens))
        self.samples = int(self._samples[-1])

    def _samples_of(self, lengths: np.ndarray) -> np.ndarray:
        return (np.maximum(lengths - 1, 0) + self.block_size - 1) // self.block_size

    def spans(self, samples_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See ``PackedCut``."""
        entry_B = np.searchsorted(self._samples, samples_B, side="right") - 1
        documents_BS = entry_B[:, None] * _STRIDE + np.arange(_STRIDE)
        inside_BS = documents_BS < len(self._lengths)
        lengths_BS = np.where(inside_BS, self._lengths[np.where(inside_BS, documents_BS, 0)], 0).astype(np.int64)
        ends_BS = np.cumsum(self._samples_of(lengths_BS), axis=1)
        in_entry_B = samples_B - self._samples[entry_B]
        document_B = (ends_BS <= in_entry_B[:, None]).sum(axis=1)
        rows = np.arange(len(samples_B))
        length_B = lengths_BS[rows, document_B]
        before_B = np.cumsum(lengths_BS, axis=1)[rows, document_B] - length_B
        in_document_B = in_entry_B - (ends_BS[rows, document_B] - self._samples_of(length_B))
        offset_B = in_document_B * self.block_size
        first_B = self._tokens[entry_B] + before_B + offset_B
        return first_B, np.minimum(self.block_size, length_B - 1 - offset_B)
