"""Memory that is free on a device."""

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
