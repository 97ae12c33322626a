"""torch.compile for a GPU that is not there: Inductor's own code runs on fake tensors, with kernels that do nothing.

Graphs are made, fused, scheduled and written as on a GPU; the wrapper code that Inductor writes then runs, allocates
and frees as it would there. Only what it would give to Triton's compiler is replaced.
"""

import contextlib
import math
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from fake_cuda import patch

# Helpers of the generated code that are compiled for real memory, and what they do on fake tensors.
_REPLACED = {
    "empty_strided_cuda": "lambda size, stride, dtype: torch.empty_strided(size, stride, dtype=dtype, device='cuda:0')",
    "reinterpret_tensor": "lambda tensor, size, stride, offset=0: torch.as_strided(tensor, size, stride, offset)",
    "assert_size_stride": "lambda *args, **kwargs: None",
    "assert_alignment": "lambda *args, **kwargs: None",
}


@dataclass
class Compiled:
    """What was compiled, and how often its kernels were launched."""

    codes: list[str] = field(default_factory=list)  # of every graph, as Inductor wrote it
    bytes: list[int] = field(default_factory=list)  # that every graph reads and writes, by Inductor's own count
    launches: int = 0  # of Triton kernels

    def triton_kernels(self) -> list[int]:
        """How many kernels each graph has."""
        return [len(re.findall(r"= async_compile\.triton\(", code)) for code in self.codes]

    def matrix_products(self) -> list[int]:
        """How many calls of cuBLAS each graph has."""
        return [len(re.findall(r"extern_kernels\.(?:mm|addmm|bmm|baddbmm)\(", code)) for code in self.codes]

    def buffers(self, dtype: str, elements: int) -> list[str]:
        """Allocations of a type with exactly so many elements in the code."""
        found = []
        for code in self.codes:
            for shape, kind in re.findall(r"empty_strided_cuda\(\(([\d, ]+)\), \([\d, ]*\), torch\.(\w+)\)", code):
                sizes = [int(size) for size in shape.split(",") if size.strip()]
                if kind == dtype and math.prod(sizes) == elements:
                    found.append(f"{kind}{sizes}")
        return found


class _Kernel:
    """In the place of a Triton kernel."""

    def __init__(self, seen: Compiled) -> None:
        self._seen = seen

    def run(self, *args: Any, **kwargs: Any) -> None:
        self._seen.launches += 1

    def __getitem__(self, grid: Any) -> Any:
        return self.run


@contextlib.contextmanager
def fake_inductor() -> Iterator[Compiled]:
    """Within ``fake_cuda``: lets torch.compile work, and yields what it has made."""
    from torch._dynamo.device_interface import CudaInterface
    from torch._inductor import async_compile, codecache, config, graph, scheduler
    from torch.utils import _triton

    seen = Compiled()

    def load(self: Any, wrapper: Any) -> Any:
        code = wrapper.value
        seen.codes.append(code)
        seen.bytes.append(sum(node.get_read_write_buffers_sizes() for node in self.scheduler.nodes))
        code = re.sub(r"^import triton\b.*$", "", code, flags=re.MULTILINE)
        for name, replacement in _REPLACED.items():
            code = re.sub(rf"^{name} = .*$", f"{name} = {replacement}", code, flags=re.MULTILINE)
        self.cache_key, self.cache_path = codecache.PyCodeCache.write(code)
        self.cache_linemap = []
        attributes = {**self.constants, **self.torchbind_constants}
        return codecache.PyCodeCache.load_by_key_path(self.cache_key, self.cache_path, linemap=[], attrs=attributes)

    major, minor = torch.cuda.get_device_capability()
    properties = torch.cuda.get_device_properties()
    interface = {
        "get_device_properties": lambda device=None: properties,
        "is_available": lambda: True,
        "current_device": lambda: 0,
        "device_count": lambda: 1,
        "get_compute_capability": lambda device=None: major * 10 + minor,
        "exchange_device": lambda device: 0,
        "maybe_exchange_device": lambda device: 0,
        "is_bf16_supported": lambda including_emulation=False: True,
        "is_triton_capable": lambda device=None: True,
        "raise_if_triton_unavailable": lambda device=None: None,
        "get_raw_stream": lambda device=0: 0,
        "synchronize": lambda device=None: None,
        "set_device": lambda device: None,
    }
    worker = {name: interface[name] for name in ("get_device_properties", "current_device", "set_device")}
    with contextlib.ExitStack() as stack:
        patch(stack, graph.GraphLowering, _compile_to_module_lines=load)
        patch(
            stack,
            async_compile.AsyncCompile,
            triton=lambda self, name, source, device_str="cuda": _Kernel(seen),
            wait=lambda self, scope: None,
        )
        patch(stack, CudaInterface, **{name: staticmethod(value) for name, value in interface.items()})
        patch(stack, CudaInterface.Worker, **{name: staticmethod(value) for name, value in worker.items()})
        patch(stack, torch.cuda, _DeviceGuard=lambda index: contextlib.nullcontext())
        patch(stack, torch._C, _cuda_getCompiledVersion=lambda: 13000)
        patch(stack, torch.version, cuda="13.0")
        patch(stack, scheduler, has_triton=lambda: True)
        patch(stack, _triton, triton_hash_with_backend=lambda: "none")
        without = ("fx_graph_cache", "autotune_local_cache", "joint_graph_constant_folding")
        stack.enter_context(config.patch(compile_threads=1, **dict.fromkeys(without, False)))
        # Generators of a GPU cannot be made here: recomputed attention passes its random state on as a tensor.
        functorch = {"enable_autograd_cache": False, "graphsafe_rng_functionalization": False}
        stack.enter_context(torch._functorch.config.patch(**functorch))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield seen
