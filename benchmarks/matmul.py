"""What matrix products and copies reach on this machine: the ceiling of everything that trains.

python benchmarks/matmul.py
"""

import json
import time
from collections.abc import Callable
from contextlib import suppress

import torch

SIZES = {"cuda": (4096, 8192, 16384), "cpu": (512, 1024, 2048)}
_ENOUGH = {"cuda": 0.2, "cpu": 0.4}  # seconds of timings per size
_LEAST = 5  # timings per size


def ceilings(device: torch.device) -> dict[str, float]:
    """FLOP/s of square matrix products by type, and bytes per second of copies: the best of several sizes and timings.

    "fp32" is computed in TF32 where the GPU has it, as training does; "fp8" is there from compute capability 8.9 on.
    """
    torch.set_float32_matmul_precision("high")
    found = {
        "bf16": max(_rate(_product(size, torch.bfloat16, device), 2 * size**3, device) for size in SIZES[device.type]),
        "fp32": max(_rate(_product(size, torch.float32, device), 2 * size**3, device) for size in SIZES[device.type]),
    }
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9):
        with suppress(RuntimeError, TypeError, AttributeError):  # a private function of torch, which may change
            found["fp8"] = max(_rate(_fp8(size, device), 2 * size**3, device) for size in SIZES["cuda"])
    source = torch.empty(2**30 if device.type == "cuda" else 2**27, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    found["copy_bytes"] = _rate(lambda: target.copy_(source), 2 * source.numel(), device)
    return found


def _product(size: int, dtype: torch.dtype, device: torch.device) -> Callable[[], object]:
    a = torch.randn(size, size, device=device).to(dtype)
    b = torch.randn(size, size, device=device).to(dtype)
    out = torch.empty_like(a)
    return lambda: torch.mm(a, b, out=out)


def _fp8(size: int, device: torch.device) -> Callable[[], object]:
    a = torch.randn(size, size, device=device).to(torch.float8_e4m3fn)
    b = torch.randn(size, size, device=device).to(torch.float8_e4m3fn).t()  # it takes its second factor by columns
    one = torch.ones((), device=device)
    return lambda: torch._scaled_mm(a, b, scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=True)


def _rate(work: Callable[[], object], amount: float, device: torch.device) -> float:
    """Amount per second of the fastest call."""
    _seconds(work, device)
    timings: list[float] = []
    while len(timings) < _LEAST or sum(timings) < _ENOUGH[device.type]:
        timings.append(_seconds(work, device))
    return amount / min(timings)


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        work()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


if __name__ == "__main__":
    print(json.dumps(ceilings(torch.device("cuda" if torch.cuda.is_available() else "cpu")), indent=2))
