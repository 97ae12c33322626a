"""GPUs that a run is planned for: memory, and how fast they are at best."""

from dataclasses import dataclass

from inheritune_lit.errors import UserError

ASSUMED_MFU = 0.5  # share of the peak that training is assumed to reach where nothing was measured


@dataclass(frozen=True)
class Gpu:
    """A kind of GPU: the name that users type, bytes of memory as the maker states them, and dense bf16 FLOP/s."""

    name: str
    memory: int
    peak_flops: float


_DATA_SHEETS: tuple[tuple[str, float, dict[str, int]], ...] = (
    ("RTX 3090", 71e12, {"rtx3090": 24}),
    ("RTX 4090", 165.2e12, {"rtx4090": 24}),
    ("L4", 121e12, {"l4": 24}),
    ("A10G", 70e12, {"a10g": 24}),
    ("A100", 312e12, {"a100-40gb": 40, "a100-80gb": 80}),
    ("A6000", 154.8e12, {"a6000": 48}),
    ("L40S", 362e12, {"l40s": 48}),
    ("H100 PCIe", 756e12, {}),
    ("H100 NVL", 835e12, {}),
    ("H100", 989e12, {"h100": 80}),
    ("H200", 989e12, {"h200": 141}),
    ("GH200", 989e12, {}),
    ("B200", 2250e12, {"b200": 180}),
)
"""Words of the name that CUDA gives, peak of matrix products in bf16 with fp32 accumulation and without sparsity in
FLOP/s (from the makers' data sheets), and GB of memory by the names that users type."""
DENSE_BF16_FLOPS = {known: flops for known, flops, _ in _DATA_SHEETS}
_SOLD = (Gpu(name, gigabytes * 10**9, flops) for _, flops, sizes in _DATA_SHEETS for name, gigabytes in sizes.items())
GPUS = sorted(_SOLD, key=lambda gpu: gpu.memory)
USUAL = ("rtx4090", "a100-40gb", "a6000", "a100-80gb", "h100", "h200")  # shown where none is named


def find_gpus(name: str | None, flag: str = "--gpu") -> list[Gpu]:
    """The GPU of a name, the usual ones when None; an unknown name is a UserError."""
    chosen = [gpu for gpu in GPUS if (gpu.name in USUAL if name is None else gpu.name == name.lower())]
    if not chosen:
        raise UserError(f"{flag} {name} is not known; give one of {', '.join(gpu.name for gpu in GPUS)}")
    return chosen


def peak_flops(device_name: str) -> float | None:
    """Peak of a GPU by the name that CUDA gives it, None where it is not in the table."""
    name = device_name.replace("-", " ").lower()
    matches = [known for known in DENSE_BF16_FLOPS if all(part in name for part in known.lower().split())]
    return DENSE_BF16_FLOPS[max(matches, key=len)] if matches else None
