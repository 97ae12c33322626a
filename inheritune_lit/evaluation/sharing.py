"""Work shared by processes that all get the same requests and all need every result."""

import torch

from inheritune_lit.validation import Ranks


class Sharing:
    """Who does what, and how results are put together.

    lm-eval is told of one process only: each one evaluates all documents from the results that it gets here, so a task
    needs no care for ranks and shards need not be equal.

    Args:
        ranks: the processes; None for this one alone.
        device: what they exchange tensors on.

    Attributes:
        rank, world: which of how many.
    """

    def __init__(self, ranks: Ranks | None, device: torch.device) -> None:
        self._ranks, self._device = ranks, device
        self.rank, self.world = (ranks.rank, ranks.world) if ranks else (0, 1)

    def add_up(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum over the processes of CPU tensors in which every entry is one process's and 0 elsewhere."""
        if self._ranks is None or self.world == 1:
            return tensor
        return self._ranks.add_up(tensor.to(self._device)).cpu()
