"""GPUs that a run is planned for: memory, and how fast they are at best."""

from dataclasses import dataclass

from inheritune_lit.errors import UserError
from inheritune_lit.io.tables import own_table

ASSUMED_MFU = 0.5  # share of the peak that training is assumed to reach where nothing was measured


@dataclass(frozen=True)
class Gpu:
    """A kind of GPU: the name that users type, bytes of memory as the maker states them, and dense bf16 FLOP/s."""

    name: str
    memory: int
    peak_flops: float


def _sheet(row: dict[str, str]) -> tuple[list[str], float, dict[str, int]]:
    sizes = (each.split() for each in row["memory_gb"].split("; ") if each)
    return row["cuda_names"].split("; "), float(row["peak_tflops"]), {name: int(gb) for name, gb in sizes}


DATA_SHEETS = [_sheet(row) for row in own_table(__file__)]
"""Names that CUDA gives, without ``_FORM``; peak of matrix products in bf16 with fp32 accumulation and without
sparsity in TFLOP/s (from the makers' data sheets); GB of memory by the names that users type."""
_FORM = {"nvidia", "geforce", "generation", "server", "workstation", "edition"}
_FORM |= {"sxm4", "sxm5", "40gb", "80gb", "480gb", "hbm3"}
"""Words of such a name that say who makes a GPU and in which form, not how fast it is. GH200's GB are the host's."""
DENSE_BF16_FLOPS = {name: 1e12 * rate for names, rate, _ in DATA_SHEETS for name in names}
_SOLD = (Gpu(name, gb * 10**9, 1e12 * rate) for _, rate, sizes in DATA_SHEETS for name, gb in sizes.items())
GPUS = sorted(_SOLD, key=lambda gpu: gpu.memory)
USUAL = ("rtx4090", "a100-40gb", "a6000", "a100-80gb", "h100", "h200")  # shown where none is named


def find_gpus(name: str | None, flag: str = "--gpu") -> list[Gpu]:
    """The GPU of a name, the usual ones when None; an unknown name is a UserError."""
    chosen = [gpu for gpu in GPUS if (gpu.name in USUAL if name is None else gpu.name == name.lower())]
    if not chosen:
        raise UserError(f"{flag} {name} is not known; give one of {', '.join(gpu.name for gpu in GPUS)}")
    return chosen


def peak_flops(device_name: str) -> float | None:
    """Peak of a GPU by the name that CUDA gives it, None where it is not in the table, as a part of a GPU (MIG)."""
    words = device_name.lower().replace("-", " ").split()
    return DENSE_BF16_FLOPS.get(" ".join(word for word in words if word not in _FORM))
