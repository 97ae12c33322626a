"""Memory of a device: what is free, and the most that was in use."""

import resource
import sys
from pathlib import Path

import torch

USABLE = 0.94
"""Part of a device's memory that tensors can have: the rest is context, fragments and workspace."""


def free_memory(device: torch.device) -> int | None:
    """Bytes that are free on a device, None where the system does not say."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0] * USABLE)
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), None)


def peak_memory(device: torch.device) -> int:
    """Most bytes that were in use so far: a GPU's tensors, or the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # Linux counts KB, macOS bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
