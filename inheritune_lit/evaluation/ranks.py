"""Work shared by processes that all get the same requests and all need every result."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from lightning.fabric import Fabric

from inheritune_lit.model.devices import device_count, launch


@dataclass(frozen=True)
class Ranks:
    """Processes that validate together.

    Attributes:
        rank, world: which of how many.
        add_up: sums a tensor over them.
    """

    rank: int
    world: int
    add_up: Callable[[torch.Tensor], torch.Tensor]

    @classmethod
    def of(cls, fabric: Fabric) -> "Ranks":
        """The processes of a fabric; it sums on its device, where its backend can, and hands back where it took."""

        def add_up(tensor: torch.Tensor) -> torch.Tensor:
            if fabric.world_size == 1:
                return tensor
            summed = fabric.all_reduce(tensor.to(fabric.device), reduce_op="sum")
            assert isinstance(summed, torch.Tensor)
            return summed.to(tensor.device)

        return cls(fabric.global_rank, fabric.world_size, add_up)


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


@dataclass(frozen=True)
class Place:
    """This process's device, and the processes that share the work; None where it is alone."""

    device: torch.device
    ranks: Ranks | None

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that prints and writes."""
        return self.ranks is None or self.ranks.rank == 0


def find_place(devices: int | Literal["auto"], num_nodes: int) -> Place:
    """Start a process a device where there are several, and say which this one is.

    Raises:
        UserError: there are not as many devices.
    """
    fabric = launch(device_count(devices, num_nodes), num_nodes)
    return Place(fabric.device, Ranks.of(fabric) if fabric.world_size > 1 else None)
