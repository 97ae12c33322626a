"""GPUs that a run is planned for: memory, and how fast they are at best."""

import difflib
from dataclasses import dataclass

from inheritune_lit.errors import UserError

DENSE_BF16_FLOPS = {
    "A6000": 154.8e12,
    "RTX 3090": 71e12,
    "RTX 4090": 165.2e12,
    "L4": 121e12,
    "L40S": 362e12,
    "A10G": 70e12,
    "A100": 312e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "GH200": 989e12,
    "B200": 2250e12,
}
"""Peak of matrix products in bf16 with fp32 accumulation and without sparsity, FLOP/s, from the makers' data sheets."""

ASSUMED_MFU = 0.5
"""Share of the peak that training is assumed to reach where nothing was measured."""


@dataclass(frozen=True)
class Gpu:
    """A GPU.

    Attributes:
        name: what users type.
        memory: bytes, as the maker states it.
        peak_flops: dense bf16, FLOP/s.
    """

    name: str
    memory: int
    peak_flops: float


def _gpu(name: str, gigabytes: int, known: str) -> Gpu:
    return Gpu(name, gigabytes * 10**9, DENSE_BF16_FLOPS[known])


GPUS = (
    _gpu("rtx3090", 24, "RTX 3090"),
    _gpu("rtx4090", 24, "RTX 4090"),
    _gpu("l4", 24, "L4"),
    _gpu("a10g", 24, "A10G"),
    _gpu("a100-40gb", 40, "A100"),
    _gpu("a6000", 48, "A6000"),
    _gpu("l40s", 48, "L40S"),
    _gpu("a100-80gb", 80, "A100"),
    _gpu("h100", 80, "H100"),
    _gpu("h200", 141, "H200"),
    _gpu("b200", 180, "B200"),
)
USUAL = ("rtx4090", "a100-40gb", "a6000", "a100-80gb", "h100", "h200")
"""Shown where no GPU is named: one or two of each size."""


def find_gpus(name: str | None, flag: str = "--gpu") -> list[Gpu]:
    """The GPU of a name, the usual ones when None.

    Raises:
        UserError: an unknown name.
    """
    if name is None:
        return [gpu for gpu in GPUS if gpu.name in USUAL]
    chosen = [gpu for gpu in GPUS if gpu.name == name.lower()]
    if not chosen:
        known = [gpu.name for gpu in GPUS]
        near = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.4) or known
        raise UserError(f"{flag} {name} is not known; give one of {', '.join(near)}")
    return chosen


def peak_flops(device_name: str) -> float | None:
    """Peak of a GPU by the name that CUDA gives it, None where it is not in the table."""
    name = device_name.replace("-", " ").lower()
    matches = [known for known in DENSE_BF16_FLOPS if all(part in name for part in known.lower().split())]
    return DENSE_BF16_FLOPS[max(matches, key=len)] if matches else None
