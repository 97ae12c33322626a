"""Hidden states that wait on the disk: a deep model's don't fit into memory together."""

from pathlib import Path

import numpy as np
import torch


class StateStore:
    """Hidden states by name, fp32.

    Args:
        folder: an empty folder of their own.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, name: str, x_BTC: torch.Tensor) -> None:
        """Keep a state, in place of the former one of that name."""
        np.save(self._folder / f"{name}.npy", x_BTC.cpu().numpy(), allow_pickle=False)

    def get(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Some sequences of a state, on the CPU."""
        mapped = np.load(self._folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        return torch.from_numpy(np.array(mapped[start:stop]))
