"""torch.cuda as it looks with one GPU in the machine, on a build of PyTorch without CUDA.

Tensors of device "cuda" are fake: they have a shape, a type and a device, and no numbers. All of torch and of this
package runs on them as it would on a GPU: modules move, autograd goes back, optimizers step. What stays on the CPU is
real. What the host asks of the GPU is answered: a single number is a 1, a copied tensor has arbitrary ones.

    with fake_cuda() as seen:
        ...  # real code
    seen.waits  # where the host would have waited for the GPU

The trick changes the process for ever: each use needs a process of its own. It rests on private names of torch, so it
is for one version of it, ``TORCH``.
"""

import contextlib
import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from gpu_watch import Watch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_map

from inheritune_lit.train import setup

TORCH = "2.13."
SOURCE = Path(__file__).parent / "device.cpp"


@dataclass(frozen=True)
class Gpu:
    """What the driver says of a GPU, as far as code asks for it."""

    name: str
    capability: tuple[int, int]
    memory: int  # bytes
    multiprocessors: int

    def properties(self) -> types.SimpleNamespace:
        """As of ``torch.cuda.get_device_properties``, with what Inductor reads."""
        return types.SimpleNamespace(
            name=self.name,
            major=self.capability[0],
            minor=self.capability[1],
            total_memory=self.memory,
            multi_processor_count=self.multiprocessors,
            warp_size=32,
            max_threads_per_multi_processor=2048,
            max_threads_per_block=1024,
            regs_per_multiprocessor=65536,
            shared_memory_per_block=49152,
            shared_memory_per_block_optin=232448,
            shared_memory_per_multiprocessor=233472,
            L2_cache_size=50 * 2**20,
            clock_rate=1_980_000,
            memory_clock_rate=2_619_000,
            memory_bus_width=5120,
            gcnArchName="",
        )


GPUS = {
    "h100": Gpu("NVIDIA H100 80GB HBM3", (9, 0), 85_017_755_648, 132),
    "a100": Gpu("NVIDIA A100-SXM4-80GB", (8, 0), 85_094_825_984, 108),
}


def unavailable() -> str | None:
    """Why this machine cannot simulate CUDA; None where it can."""
    if not torch.__version__.startswith(TORCH):
        return f"simulated CUDA is for torch {TORCH}x, this is {torch.__version__}"
    if torch.version.cuda is not None or sys.platform != "linux":
        return "simulated CUDA is for builds of torch without CUDA on Linux"
    return None if shutil.which("g++") else "simulated CUDA needs g++"


@contextlib.contextmanager
def fake_cuda(gpu: Gpu = GPUS["h100"], real_host: bool = True) -> Iterator[Watch]:
    """Runs the block as on a machine with this GPU, and yields what is seen of it.

    Without a ``real_host`` the tensors of the CPU are fake as well, so that a model of any size can be built there.
    """
    _pretend()
    with contextlib.ExitStack() as stack:
        _patch_cuda(stack, gpu)
        _patch_tensors(stack)
        patch(stack, setup, missing_for_triton=str)  # what it makes is not run
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        # Else torch.tensor(..., device="cuda") would look for the GPU before any of this sees it.
        torch._C._set_only_lift_cpu_tensors(True)
        if not real_host:
            stack.enter_context(mode)
        watch = Watch(mode)
        patch(stack, torch.cuda, max_memory_allocated=lambda device=None: watch.memory.peak)
        patch(stack, ThreadPoolExecutor, submit=_submit)
        stack.enter_context(watch)
        yield watch


def patch(stack: contextlib.ExitStack, owner: Any, **values: Any) -> None:
    """Set attributes of a module or class until the stack is closed."""
    for name, value in values.items():
        restore = (setattr, owner, name, owner.__dict__[name]) if name in owner.__dict__ else (delattr, owner, name)
        setattr(owner, name, value)
        stack.callback(*restore)


def _pretend() -> None:
    if (reason := unavailable()) is not None:
        raise RuntimeError(reason)
    if ctypes.CDLL(str(_library()), ctypes.RTLD_GLOBAL).pretend() != 0:
        raise RuntimeError("torch does not take the hooks of tests/cuda/device.cpp")


def _library() -> Path:
    """Compiles ``device.cpp``, once for each version of it and of torch; in the folder of Inductor's own caches."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir
    from torch.utils.cpp_extension import include_paths, library_paths

    digest = hashlib.sha256(SOURCE.read_bytes() + f"{torch.__version__} {torch.__file__}".encode()).hexdigest()[:16]
    target = Path(cache_dir(), f"fake-cuda-{digest}.so")
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = target.with_suffix(f".{os.getpid()}")
        folders = [f"-I{folder}" for folder in include_paths()] + [f"-L{folder}" for folder in library_paths()]
        command = ["g++", "-O1", "-shared", "-fPIC", "-std=c++20", str(SOURCE), "-o", str(aside), *folders]
        subprocess.run([*command, "-ltorch_cpu", "-lc10"], check=True)
        aside.rename(target)  # at once, since several tests may begin together
    return target


def _patch_cuda(stack: contextlib.ExitStack, gpu: Gpu) -> None:
    state = torch.zeros(16, dtype=torch.uint8)
    patch(
        stack,
        torch.cuda,
        is_available=lambda: True,
        is_initialized=lambda: True,
        device_count=lambda: 1,
        current_device=lambda: 0,
        set_device=lambda device: None,
        get_device_name=lambda device=None: gpu.name,
        get_device_capability=lambda device=None: gpu.capability,
        get_device_properties=lambda device=None: gpu.properties(),
        is_bf16_supported=lambda including_emulation=True: including_emulation or gpu.capability[0] >= 8,
        mem_get_info=lambda device=None: (gpu.memory, gpu.memory),
        synchronize=lambda device=None: None,
        empty_cache=lambda: None,
        get_rng_state=lambda device=None: state,
        set_rng_state=lambda state, device=None: None,
        _lazy_init=lambda: None,
        _is_compiled=lambda: True,
        _exchange_device=lambda device: 0,
        _maybe_exchange_device=lambda device: 0,
    )
    patch(
        stack,
        torch._C,
        _cuda_getDevice=lambda: 0,
        _cuda_getDeviceCount=lambda: 1,
        _cuda_setDevice=lambda device: None,
        _cuda_exchangeDevice=lambda device: 0,
        _cuda_maybeExchangeDevice=lambda device: 0,
        _cuda_isInBadFork=lambda: False,
        _cuda_getCurrentRawStream=lambda device=0: 0,
    )


def _patch_tensors(stack: contextlib.ExitStack) -> None:
    patch(stack, FakeTensorMode, avoid_device_init=property(lambda self: True))
    patch(stack, torch.Tensor, pin_memory=lambda self, device=None: self)
    patch(stack, FakeTensor, tolist=_tolist)
    patch(stack, torch.nn.Module, to=_module_to(torch.nn.Module.to))
    patch(stack, torch, save=_save(torch.save))
    patch(stack, torch.Tensor, data_ptr=_data_ptr(torch.Tensor.data_ptr))


def _tolist(self: FakeTensor) -> Any:
    def zeros(shape: tuple[int, ...]) -> Any:
        return [zeros(shape[1:]) for _ in range(shape[0])] if shape else 0.0

    host = self.cpu()  # for which the host waits
    return zeros(tuple(host.shape)) if isinstance(host, FakeTensor) else host.tolist()


def _data_ptr(real: Callable[..., int]) -> Callable[..., int]:
    def data_ptr(self: torch.Tensor) -> int:
        if not isinstance(self, FakeTensor):
            return real(self)
        # Not an address, but as different from that of other tensors.
        return self.untyped_storage()._cdata + self.storage_offset() * self.element_size()

    return data_ptr


def _save(real: Callable[..., None]) -> Callable[..., None]:
    def on_host(leaf: Any) -> Any:
        return leaf.cpu() if isinstance(leaf, FakeTensor) else leaf

    return lambda content, *args, **kwargs: real(tree_map(on_host, content), *args, **kwargs)


def _submit(self: ThreadPoolExecutor, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
    """Runs at once what would run in another thread: fake tensors are not made for several, nor are they watched."""
    future: Future[Any] = Future()
    try:
        future.set_result(function(*args, **kwargs))
    except BaseException as error:
        future.set_exception(error)
    return future


def _module_to(real: Callable[..., Any]) -> Callable[..., Any]:
    """``torch.nn.Module.to`` with new parameters where the real one would put fake numbers into real tensors."""

    def to(self: torch.nn.Module, *args: Any, **kwargs: Any) -> torch.nn.Module:
        device, dtype, non_blocking, _ = torch._C._nn._parse_to(*args, **kwargs)
        faked = any(isinstance(tensor, FakeTensor) for tensor in (*self.parameters(), *self.buffers()))
        if not faked and (device is None or device.type == "cpu"):
            return real(self, *args, **kwargs)
        moved: dict[torch.Tensor, torch.Tensor] = {}
        for module in self.modules():
            for tensors in (module._parameters, module._buffers):
                for name, tensor in tensors.items():
                    if tensor is None:
                        continue
                    if tensor not in moved:
                        kind = dtype if tensor.is_floating_point() else None
                        new = tensor.detach().to(device=device, dtype=kind, non_blocking=non_blocking)
                        if isinstance(tensor, torch.nn.Parameter):
                            new = torch.nn.Parameter(new, requires_grad=tensor.requires_grad)
                        moved[tensor] = new
                    tensors[name] = moved[tensor]
        return self

    return to
