"""Devices of a run, and the signals that stop it at the next good moment."""

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Literal

import torch
from lightning.fabric import Fabric
from lightning.fabric.strategies import ModelParallelStrategy
from lightning.fabric.strategies import Strategy as FabricStrategy
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

from inheritune_lit.model.devices import device_count, launch
from inheritune_lit.train.args import Precision, Strategy
from inheritune_lit.train.gpus import peak_flops
from inheritune_lit.train.loss import TrainingModel

logger = logging.getLogger(__name__)


@contextmanager
def stop_requests(doing: Callable[[], str] | None = None) -> Iterator[list[signal.Signals]]:
    """Yields a list that takes up SIGTERM and SIGINT while the block runs, instead of their usual effect.

    Each is acknowledged at once; a second one of the same kind stops the block where it is.

    Args:
        doing: what will be finished first, in words; nothing is said when None.
    """
    received: list[signal.Signals] = []
    if threading.current_thread() is not threading.main_thread():
        yield received  # Python lets only the main thread handle signals
        return

    def note(number: int, frame: object) -> None:
        again = number in received
        received.append(signal.Signals(number))
        if again:
            raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)
        if doing:
            with suppress(RuntimeError):  # the signal came in the middle of another line
                logger.info(f"finishing {doing()}, then saving; again to stop now")

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def build_fabric(devices: int | Literal["auto"], num_nodes: int, strategy: Strategy, precision: Precision) -> Fabric:
    """Fabric, launched: with several devices every one of them runs this program from here on.

    Args:
        devices: per node; "auto" takes every GPU, or one CPU process.
        num_nodes: nodes.
        strategy: "ddp" keeps a replica per device; "fsdp" shards parameters and optimizer state over all devices;
            "hybrid" shards within a node and replicates over nodes; "auto" is one device or "ddp".
        precision: see ``pretrain``.

    Raises:
        UserError: there are not as many devices.
    """
    count = device_count(devices, num_nodes)
    chosen: str | FabricStrategy = "auto"
    if strategy in ("fsdp", "hybrid"):
        chosen = _sharded(count, num_nodes, strategy == "hybrid", precision)
    elif count * num_nodes > 1:
        chosen = "ddp"
    # bf16-true casts the weights only: Fabric's own would round RoPE's tables too.
    plugin = "bf16-mixed" if precision == "bf16-mixed" and isinstance(chosen, str) else "32-true"
    return launch(count, num_nodes, chosen, plugin)


def _sharded(devices: int, num_nodes: int, hybrid: bool, precision: Precision) -> ModelParallelStrategy:
    # Parameters and gradients stay fp32 in their shards; what is gathered and computed is bf16.
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if precision == "bf16-mixed" else None, reduce_dtype=torch.float32
    )

    def shard(model: TrainingModel, mesh: DeviceMesh) -> TrainingModel:
        target = mesh["data_parallel"]
        if hybrid:
            target = init_device_mesh(mesh.device_type, (num_nodes, devices), mesh_dim_names=("replicate", "shard"))
        for block in model.gpt.transformer.h:
            fully_shard(block, mesh=target, mp_policy=policy)
        fully_shard(model.gpt, mesh=target, mp_policy=policy)
        register_fsdp_forward_method(model.gpt, "hidden_states")
        return model

    return ModelParallelStrategy(shard, data_parallel_size=devices * num_nodes, tensor_parallel_size=1)


def default_precision() -> Precision:
    """bf16-mixed where a GPU computes it natively, 32-true elsewhere."""
    return "bf16-mixed" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "32-true"


def machine_name(fabric: Fabric) -> str:
    """What a run computes on, such as "2 x NVIDIA A100-SXM4-80GB"."""
    name = torch.cuda.get_device_name(fabric.device) if fabric.device.type == "cuda" else "CPU"
    return f"{fabric.world_size} x {name}" if fabric.world_size > 1 else name


def peak_flops_of(device: torch.device) -> float | None:
    """Peak of a device in bf16, FLOP/s; None where it is not known."""
    return peak_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
