"""Devices: processes on several of them through Lightning Fabric, their memory, and the compiler for the CPU."""

import atexit
import logging
import os
import resource
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.fabric import Fabric
from lightning.fabric.strategies import Strategy

from inheritune_lit.errors import UserError
from inheritune_lit.io.machine import end_with

logger = logging.getLogger(__name__)


def device_count(devices: int | Literal["auto"], num_nodes: int) -> int:
    """Devices per node; "auto" is every GPU, or one CPU process. More than there are is refused."""
    if num_nodes < 1 or (devices != "auto" and devices < 1):
        raise UserError(f"--devices {devices} --num_nodes {num_nodes}; give 1 or more of both, or auto devices")
    available = torch.cuda.device_count() or (1 if devices == "auto" else devices)
    if devices != "auto" and devices > available:
        raise UserError(f"--devices is {devices}; this node has {available}, give 1 to {available}")
    return available if devices == "auto" else devices


def launch(count: int, num_nodes: int, strategy: str | Strategy = "auto", precision: Any = "32-true") -> Fabric:
    """Fabric; with several devices per node every one of them runs this program from here on.

    Processes come from torchrun or SLURM where one of them has started this program, and are started here otherwise.
    """
    accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    fabric = Fabric(accelerator=accelerator, devices=count, num_nodes=num_nodes, strategy=strategy, precision=precision)
    if count * num_nodes > 1:
        leader = int(os.environ.setdefault(_LEADER, str(os.getpid())))
        if leader != os.getpid():
            end_with(leader)
        fabric.launch()
        os.environ.pop(_LEADER, None)
        atexit.register(_leave_group)
    return fabric


_LEADER = "INHERITUNE_LEADER"


@contextmanager
def one_fate(fabric: Fabric) -> Iterator[None]:
    """Where one rank of several fails in the block, the others end too, the first with a ``UserError`` that says so."""
    try:
        yield
    except RuntimeError as error:
        lost = isinstance(error, torch.distributed.DistError) or "gloo" in str(error) or "NCCL" in str(error)
        if fabric.world_size == 1 or not lost:
            raise
        told = UserError("another process of this run has ended; it said why, or was killed")
        raise (SystemExit(2) if fabric.global_rank else told) from error


@contextmanager
def on_first_rank(fabric: Fabric, context: AbstractContextManager[Any]) -> Iterator[Any]:
    """Enters a context on the first rank alone, where this yields its value, on others None; where it raises a
    ``UserError``, so does this, and all ranks end."""
    refused, value = None, None
    with ExitStack() as stack:
        if fabric.global_rank == 0:
            try:
                value = stack.enter_context(context)
            except UserError as error:
                refused = error
        if fabric.broadcast(refused is not None):
            raise refused or SystemExit(2)
        yield value


def _leave_group() -> None:
    # An interpreter that ends with the group's threads still running now and then aborts instead.
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


USABLE = 0.94  # part of a device's memory that tensors can have: the rest is context, fragments and workspace


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


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of the CPU on a device; for CUDA from pinned memory, so that the copy does not wait."""
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


def batches_per_wait(device: torch.device) -> int:
    """How many batches are computed before their results are fetched: a GPU has the next one to do meanwhile."""
    return 8 if device.type == "cuda" else 1


def has_native_bf16() -> bool:
    """Whether there is a GPU that computes in bf16 itself; V100 and T4 emulate it, slower than fp32."""
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


def tell_bf16(device: torch.device, used: bool) -> None:
    """Log, on a GPU that emulates bf16, that it is ``used`` nonetheless, or what is computed in instead."""
    if device.type != "cuda" or has_native_bf16():
        return
    if used:
        logger.warning("inheritune: warning: this GPU has no bf16 and emulates it, slowly: fp32 is faster")
    else:
        logger.info("      this GPU has no bf16: computed in fp32")


def has_compiler() -> bool:
    """Whether torch can compile for the CPU."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except (InvalidCxxCompiler, OSError):
        return False
    return _has_python_headers()


def missing_for_triton() -> str:
    """What torch needs to compile for a GPU and is not there, empty for nothing: Triton builds its launcher in C."""
    compilers = [os.environ["CC"]] if "CC" in os.environ else ["gcc", "clang"]
    needs = {
        "the package triton": find_spec("triton") is not None,
        "a C compiler (gcc, clang, or what CC names)": any(map(shutil.which, compilers)),
        "Python.h (python3-dev)": _has_python_headers(),
    }
    return " and ".join(name for name, found in needs.items() if not found)


def _has_python_headers() -> bool:
    return Path(sysconfig.get_path("include"), "Python.h").is_file()
