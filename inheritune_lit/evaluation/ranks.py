"""Work shared by the processes of a run, all of which need every result."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from lightning.fabric import Fabric


@dataclass(frozen=True)
class Ranks:
    """The processes that share work; by default this one alone.

    Each one gets all requests and does a share. Results are put together by adding tensors in which every entry is one
    process's and 0 elsewhere, so lm-eval is told of one process only, tasks need no care, and shares need not be equal.

    ``add_up`` sums a tensor over them and gives it back on the device that it came from.
    """

    rank: int = 0
    world: int = 1
    add_up: Callable[[torch.Tensor], torch.Tensor] = field(default=lambda tensor: tensor)
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

        def add_up(tensor: torch.Tensor) -> torch.Tensor:
            summed = fabric.all_reduce(tensor.to(fabric.device), reduce_op="sum")
            assert isinstance(summed, torch.Tensor)
            return summed.to(tensor.device)

        return cls(fabric.global_rank, fabric.world_size, add_up, fabric.device)
