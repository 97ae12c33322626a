"""Work shared by the processes of a run, all of which need every result."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from lightning.fabric import Fabric

from inheritune_lit.model.devices import device_count, launch


def _as_it_is(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


@dataclass(frozen=True)
class Ranks:
    """The processes that share work; by default this one alone.

    Each one gets all requests and does a share. Results are put together by adding tensors in which every entry is one
    process's and 0 elsewhere, so lm-eval is told of one process only, tasks need no care, and shares need not be equal.

    Attributes:
        rank, world: which of how many.
        add_up: sums a tensor over them and gives it back on the device that it came from.
        device: what this process computes on.
    """

    rank: int = 0
    world: int = 1
    add_up: Callable[[torch.Tensor], torch.Tensor] = _as_it_is
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

    @classmethod
    def start(cls, devices: int | Literal["auto"], num_nodes: int) -> "Ranks":
        """Start a process per device where there are several.

        Raises:
            UserError: there are not as many devices.
        """
        return cls.of(launch(device_count(devices, num_nodes), num_nodes))
