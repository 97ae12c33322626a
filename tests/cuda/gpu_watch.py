"""What a program does with its GPU: where the host waits, which attention kernels run, and how much memory is in use.

All of it is seen at PyTorch's dispatcher, through which every operation on a tensor goes, also those of backward passes
and of the code that Inductor generates.
"""

import re
import sys
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch._ops import HigherOrderOperator
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import inheritune_lit

PACKAGE = Path(inheritune_lit.__file__).parent
BLOCK = 512  # bytes, of which the caching allocator hands out multiples
_ALWAYS_WAIT = {"aten._local_scalar_dense", "aten.equal", "aten.is_nonzero", "aten.nonzero", "aten.masked_select"}
_ANSWERED = {"aten._local_scalar_dense", "aten.equal", "aten.is_nonzero"}
_ALWAYS_WAIT |= {"aten._unique2", "aten.unique_dim", "aten.unique_consecutive", "aten.multinomial"}


def place() -> str:
    """The innermost line of this package that is being executed, such as "train/loop.py:174 train_step".

    The function is the one in whose text the line is, whether or not a comprehension has a frame of its own.
    """
    frame, line = sys._getframe(1), ""
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(PACKAGE):
            line = line or f"{path.relative_to(PACKAGE)}:{frame.f_lineno}"
            if not frame.f_code.co_name.startswith("<"):
                return f"{line} {frame.f_code.co_name}"
        frame = frame.f_back
    return "backward pass" if torch._C._current_graph_task_id() != -1 else "elsewhere"


def by_function(counts: dict[str, int]) -> dict[str, int]:
    """Counts by place without its line, which is nobody's business."""
    merged: Counter[str] = Counter()
    for where, count in counts.items():
        merged[re.sub(r":\d+ ", " ", where)] += count
    return dict(merged)


@dataclass(frozen=True)
class Change:
    """An allocation, or, with a negative size, its end."""

    storage: int  # a number of its own
    size: int  # bytes
    what: str = ""  # type, shape and operation
    where: str = ""


@dataclass
class Memory:
    """Bytes of live storages on the GPU, and the most there were; fragmentation and workspaces are not counted."""

    live: int = 0
    peak: int = 0
    changes: list[Change] | None = None  # recorded while it is a list
    _storages: dict[int, tuple[int, int]] = field(default_factory=dict)  # number and size, by address
    _count: int = 0

    def note(self, tensor: torch.Tensor, operation: str) -> None:
        """Count the storage of a result, unless it is known."""
        storage = tensor.untyped_storage()
        if (key := storage._cdata) in self._storages:
            return
        self._count += 1
        size = -(-storage.nbytes() // BLOCK) * BLOCK
        self._storages[key] = (self._count, size)
        weakref.finalize(storage, self._end, key)
        self.live += size
        self.peak = max(self.peak, self.live)
        if self.changes is not None:
            what = f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)} {operation}"
            self.changes.append(Change(self._count, size, what, place()))

    def _end(self, key: int) -> None:
        number, size = self._storages.pop(key)
        self.live -= size
        if self.changes is not None:
            self.changes.append(Change(number, -size))

    @contextmanager
    def recorded(self) -> Iterator["Recording"]:
        """Records the block's changes; the peak is the block's from here on."""
        self.peak, self.changes = self.live, []
        recording = Recording(self.live, self.changes)
        try:
            yield recording
        finally:
            self.changes = None


@dataclass
class Recording:
    """Memory during a block of code."""

    before: int  # bytes that were live
    changes: list[Change]

    def at_peak(self) -> tuple[int, str, Counter[str]]:
        """Most bytes at once, where the last of them was allocated, and the bytes of all allocations of the block by
        what and where they are."""
        live = best = self.before
        end = 0
        for number, change in enumerate(self.changes, 1):
            live += change.size
            if live > best:
                best, end = live, number
        there: dict[int, Change] = {}
        for change in self.changes[:end]:
            if change.size > 0:
                there[change.storage] = change
            else:
                there.pop(change.storage, None)
        parts: Counter[str] = Counter()
        for change in there.values():
            parts[f"{change.what} @ {change.where}"] += change.size
        return best, self.changes[end - 1].where if end else "", parts


class Watch(TorchDispatchMode):
    """Sees every operation, runs those on the GPU with fake tensors, and answers what the host asks of them."""

    supports_higher_order_operators = True

    def __init__(self, fakes: FakeTensorMode) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()  # by kind and place
        self.attention: Counter[str] = Counter()  # by operation
        self.operations: Counter[str] = Counter()  # on the GPU, by name
        self.on_host: Counter[str] = Counter()  # on real tensors of the CPU, by name
        self.memory = Memory()
        self._fakes = fakes
        self._numbers, self._copies = torch.Generator().manual_seed(0), 0

    @classmethod
    def is_infra_mode(cls) -> bool:
        """Dynamo compiles under it."""
        return True

    def clear(self) -> None:
        """Forget operations and waits so far."""
        for counts in (self.waits, self.attention, self.operations, self.on_host):
            counts.clear()

    def _with_random_state(self, func: HigherOrderOperator, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Attention that is computed again; PyTorch counts it as random, although nothing is dropped."""
        with self:
            if func.name() == "run_and_save_rng_state":
                return torch.cuda.get_rng_state(), args[0](*args[1:], **kwargs)
            assert func.name() == "run_with_rng_state", func
            return args[1](*args[2:], **kwargs)

    def _fill(self, host: torch.Tensor) -> torch.Tensor:
        """Numbers for what the host has copied from the GPU: floating-point ones that grow from copy to copy, or 0.

        So a model that is measured later is worse.
        """
        if not host.dtype.is_floating_point or host.device.type != "cpu":
            return host.zero_()
        self._copies += 1
        return host.uniform_(self._copies, self._copies + 1, generator=self._numbers)

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if isinstance(func, HigherOrderOperator):
            return self._with_random_state(func, args, kwargs)
        name = str(func).rsplit(".", 1)[0]
        if name == "prim.device":
            return func(*args, **kwargs)
        if torch.is_inference_mode_enabled() and func._can_decompose():
            with self:  # whose parts come here otherwise, but not in inference mode
                return func.decompose(*args, **kwargs)
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        target = kwargs.get("device")
        to_gpu = target is not None and torch.device(target).type == "cuda"
        on_gpu = any(_on_gpu(tensor) for tensor in tensors)
        if on_gpu or to_gpu:
            self.operations[name] += 1
            if "scaled_dot_product" in name:
                self.attention[name.removeprefix("aten._scaled_dot_product_") + _masked(name, args)] += 1
            if reason := _wait(name, args, kwargs):
                self.waits[f"{reason} @ {place()}"] += 1
        elif tensors and not any(isinstance(tensor, FakeTensor) for tensor in tensors):
            self.on_host[name] += 1
        if name in _ANSWERED and any(isinstance(tensor, FakeTensor) for tensor in tensors):
            return _answer(name, args[0])
        fake_host = torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE) is not None
        if on_gpu and not fake_host:
            if name == "aten._to_copy" and target is not None and not to_gpu:
                host = torch.empty(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype, device=target)
                return self._fill(host)
            if name == "aten.copy_" and not _on_gpu(args[0]):
                return self._fill(args[0])
        if on_gpu:
            func, args = _every_entry(func, name, args)
        with self._fakes if (on_gpu or to_gpu) and not fake_host else nullcontext():
            result = func(*args, **kwargs)
        for leaf in tree_leaves(result):
            if isinstance(leaf, FakeTensor) and _on_gpu(leaf):
                self.memory.note(leaf, name.removeprefix("aten."))
        return result


def _masked(name: str, args: tuple[Any, ...]) -> str:
    """Whether a kernel that takes masks has got one; flash attention does not take any."""
    if name.endswith(("efficient_attention", "cudnn_attention")) and args[3] is not None:
        return " with a mask"
    return ""


def _on_gpu(tensor: torch.Tensor) -> bool:
    return tensor.device.type == "cuda"


def _wait(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    """How the host waits for the GPU in an operation that has to do with it; None where it does not."""
    short = name.removeprefix("aten.")
    if name in _ALWAYS_WAIT:
        return {"_local_scalar_dense": "item"}.get(short, short)
    if short == "repeat_interleave":
        return None if kwargs.get("output_size") else short
    if short == "_to_copy" and kwargs.get("device") is not None and not kwargs.get("non_blocking"):
        kinds = args[0].device.type, torch.device(kwargs["device"]).type
        return {("cpu", "cuda"): "copy to device", ("cuda", "cpu"): "copy to host"}.get(kinds)
    elif short == "copy_" and not (kwargs.get("non_blocking") or (len(args) > 2 and args[2])):
        if _on_gpu(args[0]) != _on_gpu(args[1]):
            return "copy to device" if _on_gpu(args[0]) else "copy to host"
    elif short in ("index", "index_put", "index_put_", "_index_put_impl_"):
        indices = [index for index in args[1] if index is not None]
        if any(index.dtype in (torch.bool, torch.uint8) for index in indices):
            return "boolean index"
        if any(not _on_gpu(index) and index.dim() for index in indices):
            return "index from host"
    return None


def _answer(name: str, tensor: torch.Tensor) -> bool | int | float:
    """What the host is told of a value that nobody has computed."""
    if name != "aten._local_scalar_dense" or tensor.dtype == torch.bool:
        return True
    return 1.0 if tensor.dtype.is_floating_point else 1


def _every_entry(func: Any, name: str, args: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...]]:
    """An operation whose result has a shape that depends on numbers, as if each of these were true."""
    first = args[0]
    if name == "aten.masked_select":
        return torch.ops.aten.new_empty.default, (first, [first.numel()])
    if name == "aten.nonzero":
        new = partial(torch.ops.aten.new_empty.default, dtype=torch.int64)
        return new, (first, [first.numel(), first.dim()])
    if name in ("aten.index", "aten.index_put", "aten.index_put_", "aten._index_put_impl_"):
        indices: list[torch.Tensor | None] = []
        for index in args[1]:
            if index is None or index.dtype not in (torch.bool, torch.uint8):
                indices.append(index)
            else:
                indices += [index.new_empty(index.numel(), dtype=torch.int64) for _ in range(index.dim())]
        return func, (first, indices, *args[2:])
    return func, args
