"""The order of training samples: a function of the seed and the sample's number, with no state to save."""

import numpy as np


class BlockSampler:
    """Which block is sample i.

    Every epoch visits each block exactly once, in an order of its own. Sample i depends on ``seed`` and i alone, so any
    number of workers and ranks agree, and a restarted run needs one integer to go on.

    Args:
        n_blocks: number of blocks, at least one.
        seed: seed of the order.
    """

    def __init__(self, n_blocks: int, seed: int) -> None:
        self.n_blocks, self.seed = n_blocks, seed
        self._epoch = -1
        self._order = np.empty(0, dtype=np.int64)

    def __getitem__(self, sample: int) -> int:
        """Block of a sample, for any sample >= 0."""
        epoch, position = divmod(sample, self.n_blocks)
        if epoch != self._epoch:  # a cache, not state: it can be rebuilt from the seed and the epoch
            generator = np.random.Generator(np.random.Philox(key=[self.seed, epoch]))
            self._order, self._epoch = generator.permutation(self.n_blocks), epoch
        return int(self._order[position])
