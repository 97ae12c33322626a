"""Where an evaluation computes, and which processes share it."""

from dataclasses import dataclass
from typing import Literal

import torch

from inheritune_lit.evaluation.sharing import Ranks
from inheritune_lit.launch import device_count, launch


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
