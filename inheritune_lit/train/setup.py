"""What a run needs of its machine: devices, signals, packages and kernels, and the model made ready for training."""

import logging
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal, cast

import torch
from lightning.fabric import Fabric
from lightning.fabric.strategies import ModelParallelStrategy
from lightning.fabric.strategies import Strategy as FabricStrategy
from litgpt.model import GPT
from torch._functorch import config as functorch_config
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

from inheritune_lit.checkpoint.config import Config
from inheritune_lit.errors import UserError
from inheritune_lit.io.machine import handle_signals
from inheritune_lit.model.attention import attention_kernel, fuse_attention, install_plans, kernels_for_training
from inheritune_lit.model.devices import (
    device_count,
    has_compiler,
    has_native_bf16,
    launch,
    missing_for_triton,
    tell_bf16,
)
from inheritune_lit.model.gpt import checkpoint_activations
from inheritune_lit.train.args import Precision, SpeedArgs, Strategy, TrainingArgs
from inheritune_lit.train.distillation import Distillation
from inheritune_lit.train.gpus import peak_flops
from inheritune_lit.train.loss import DistillationModel, Kernel, TrainingModel
from inheritune_lit.train.optim import MasterWeights, Optimizer, build_optimizer, linear_parameters
from inheritune_lit.train.trainable import TrainedModel

logger = logging.getLogger(__name__)

_WORTH_COMPILING = 1e14  # FLOPs of runs on CPU that gain more than the minute that the compiler takes


@contextmanager
def stop_requests(doing: Callable[[], str] | None = None) -> Iterator[list[signal.Signals]]:
    """Yields a list that takes up SIGTERM and SIGINT while the block runs, instead of their usual effect.

    Each is acknowledged at once with what is ``doing`` before the block ends, silently when None; a second one of
    the same kind stops the block where it is.
    """
    received: list[signal.Signals] = []

    def note(number: int, frame: object) -> None:
        again = number in received
        received.append(signal.Signals(number))
        if again:
            raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)
        if doing:
            try:
                logger.info(f"{doing()}; again to stop now")
            except RuntimeError:  # the signal came in the middle of another line
                os.write(2, f"{doing()}; again to stop now\n".encode())

    with handle_signals(note, signal.SIGTERM, signal.SIGINT):
        yield received


def build_fabric(devices: int | Literal["auto"], num_nodes: int, strategy: Strategy, precision: Precision) -> Fabric:
    """Fabric, launched: with several devices every one of them runs this program from here on.

    "auto" devices per node are every GPU, or one CPU process; fewer than asked for are a UserError. The strategy "ddp"
    keeps a replica per device; "fsdp" shards parameters and optimizer state over all devices; "hybrid" shards within a
    node and replicates over nodes; "auto" is one device or "ddp".
    """
    count = device_count(devices, num_nodes)
    chosen: str | FabricStrategy = "ddp" if count * num_nodes > 1 else "auto"
    if strategy in ("fsdp", "hybrid"):
        # Parameters and gradients stay fp32 in their shards; what is gathered and computed is bf16.
        computed = torch.bfloat16 if precision == "bf16-mixed" else None
        policy = MixedPrecisionPolicy(param_dtype=computed, reduce_dtype=torch.float32)

        def shard(model: TrainingModel, mesh: DeviceMesh) -> TrainingModel:
            target = mesh["data_parallel"]
            if strategy == "hybrid":
                target = init_device_mesh(mesh.device_type, (num_nodes, count), mesh_dim_names=("replicate", "shard"))
            for part in (*model.gpt.transformer.h, model.gpt):
                fully_shard(part, mesh=target, mp_policy=policy)
            for entrance in ("hidden_states", "states_between"):
                register_fsdp_forward_method(model.gpt, entrance)
            return model

        chosen = ModelParallelStrategy(shard, data_parallel_size=count * num_nodes, tensor_parallel_size=1)
    # bf16-true casts the weights only: Fabric's own would round RoPE's tables too.
    plugin = "bf16-mixed" if precision == "bf16-mixed" and isinstance(chosen, str) else "32-true"
    return launch(count, num_nodes, chosen, plugin)


def default_precision() -> Precision:
    """bf16-mixed where a GPU computes it natively, 32-true elsewhere."""
    return "bf16-mixed" if has_native_bf16() else "32-true"


@contextmanager
def training_switches(
    device: torch.device, precision: Precision, deterministic: bool, activation_budget: float = 1.0
) -> Iterator[None]:
    """Sets torch's global switches for training while the block runs, and afterwards back.

    On CPU, and where it is asked for on CUDA, the same steps have the same bits each time: compiled code of either adds
    up the embedding's gradient in any order otherwise. In 32-true CUDA multiplies matrices in TF32. What is compiled
    keeps a share of its activations.
    """
    memory: Any = torch.utils.deterministic
    mode, matmul = torch.get_deterministic_debug_mode(), torch.get_float32_matmul_precision()
    fill = memory.fill_uninitialized_memory
    try:
        if device.type == "cuda" and precision == "32-true":
            torch.set_float32_matmul_precision("high")
        if deterministic or device.type != "cuda":
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it is first used
            torch.use_deterministic_algorithms(True)  # Inductor then chooses no kernel by timing it
            memory.fill_uninitialized_memory = False  # takes time, and is for finding mistakes
        with functorch_config.patch(activation_memory_budget=activation_budget):
            yield
    finally:
        torch.use_deterministic_algorithms(mode > 0, warn_only=mode == 1)
        torch.set_float32_matmul_precision(matmul)
        memory.fill_uninitialized_memory = fill


def machine_name(fabric: Fabric) -> str:
    """What a run computes on, such as "2 x NVIDIA A100-SXM4-80GB"."""
    name = torch.cuda.get_device_name(fabric.device) if fabric.device.type == "cuda" else "CPU"
    return f"{fabric.world_size} x {name}" if fabric.world_size > 1 else name


def peak_flops_of(device: torch.device) -> float | None:
    """Peak of a device in bf16, FLOP/s; None where it is not known."""
    return peak_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None


@dataclass(frozen=True)
class Kernels:
    """Choices for one device: how the loss is computed, and whether it and the model go through torch.compile."""

    loss: Kernel
    compiled: bool


def choose_kernels(
    config: Config, speed: SpeedArgs, device: torch.device, z_loss: float, flops: float, distilled: bool = False
) -> Kernels:
    """What the settings mean on a device; the FLOPs are those of the whole run.

    The loss that "auto" means is the plain one where it is compiled, which then never holds logits in fp32, and chunks
    elsewhere: as fast, they bound the memory, but the compiler cannot see through them. A teacher has a loss of its
    own, which is not compiled. Settings that contradict each other, or need a compiler that is not there, are a
    UserError.
    """
    compiled = speed.compile
    if compiled is None:
        compiled = device.type == "cuda" or (flops >= _WORTH_COMPILING and has_compiler())
    elif compiled and device.type == "cpu" and not has_compiler():
        raise UserError("--speed.compile true on CPU needs a C++ compiler and Python.h; install them, or leave it out")
    if distilled:
        return Kernels("distilled", compiled)
    speed.check_compiled(compiled)
    if speed.loss_kernel != "auto":
        return Kernels(speed.loss_kernel, compiled)
    plain = z_loss or config.final_logit_softcapping is not None or config.lm_head_bias
    return Kernels("plain" if compiled or plain else "chunked", compiled)


def check_machine(args: TrainingArgs, device: torch.device) -> None:
    """Refuse settings that the machine with this device cannot serve with a ``UserError``.

    That is an optimizer that does not exist or take its arguments, fp8 elsewhere, or a package or a compiler that is
    missing.
    """
    if device.type == "cuda" and args.speed.compile is not False and (missing := missing_for_triton()):
        raise UserError(f"compiling for a GPU needs {missing}; install it, or give --speed.compile false")
    build_optimizer(torch.nn.Linear(1, 1, device=device), args.optimizer)
    if args.speed.fp8:
        if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 9):
            raise UserError(f"--speed.fp8 needs a Hopper or Ada GPU, this run is on {device.type}; leave it out")
        if find_spec("torchao") is None:
            raise UserError("--speed.fp8 needs torchao; install inheritune-lit[gpu], or leave it out")
    name = args.logger_name
    if name in ("wandb", "mlflow"):  # TensorBoard comes with this package
        try:
            import_module(name)
        except ImportError as error:
            raise UserError(f"--logger_name {name} needs the package {name}; install it, or use csv") from error


@dataclass
class TrainState:
    """What a run changes: weights, and the optimizer over them."""

    gpt: GPT
    loss: Any  # of model and loss, wrapped by fabric: inputs (B, T) and targets (B, T) to summed nats
    optimizer: Optimizer

    def weights(self) -> dict[str, torch.Tensor]:
        """The tensors that are trained by name, as they are saved: masters where they are the weights."""
        named = [each for each in self.gpt.named_parameters(remove_duplicate=False) if each[1].requires_grad]
        if isinstance(self.optimizer, MasterWeights) and self.optimizer.are_weights:
            named = [(name, self.optimizer.masters[parameter]) for name, parameter in named]
        return {name: parameter.detach() for name, parameter in named}

    def load_state_dict(self, weights: dict[str, Any]) -> None:
        """Take trained weights over, rounded where the model has them so."""
        self.gpt.load_state_dict(weights, strict=False)
        for name, saved in self.weights().items():
            saved.copy_(weights[name])


def set_up(
    fabric: Fabric,
    gpt: GPT,
    args: TrainingArgs,
    block_size: int,
    precision: Precision,
    kernels: Kernels,
    distillation: Distillation | None = None,
) -> TrainState:
    """Move a model from the CPU to its device, and add kernels, compiler, loss and optimizer; say which were chosen.

    Its weights have the type that they are trained in, and ``check_machine`` has let the settings pass.
    """
    gpt.max_seq_length = block_size
    TrainedModel.of(gpt, args.train.trainable).freeze(gpt)
    if args.speed.activation_checkpointing:
        checkpoint_activations(gpt)
    if args.speed.fp8:
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training

        # With a scale per tensor. The head stays in bf16: its gradients span too many magnitudes.
        convert_to_float8_training(
            gpt,
            config=Float8LinearConfig.from_recipe_name("tensorwise"),
            module_filter_fn=lambda module, name: name != "lm_head" and not any(n % 16 for n in module.weight.shape),
        )
    chosen = _apply_kernels(gpt, kernels, args.speed, precision, fabric.device)
    if fabric.global_rank == 0:
        if args.deterministic and fabric.device.type == "cuda":
            chosen += ", deterministic: backward passes of attention and embedding take longer"
        logger.info(f"      {chosen}")
        tell_bf16(fabric.device, precision != "32-true")
    if distillation:
        if teacher := distillation.teacher:
            _apply_kernels(teacher, kernels, args.speed, precision, fabric.device)
            teacher.to(fabric.device)
        model: torch.nn.Module = DistillationModel(
            gpt, distillation.args, teacher, distillation.vocabulary, distillation.layers, kernels.compiled
        )
    else:
        model = TrainingModel(gpt, kernels.loss, args.train.z_loss)
        if kernels.compiled:
            model = cast(torch.nn.Module, torch.compile(model, dynamic=False))
    module = fabric.setup_module(model)
    if precision == "bf16-mixed" and not args.sharded:  # as autocast would in every micro-batch
        for parameter in linear_parameters(gpt, trained=False):
            parameter.data = parameter.detach().bfloat16()
    # Several devices leave the rounding to autocast: their strategies reduce the gradients of fp32 weights.
    rounded = precision == "bf16-mixed" and fabric.world_size == 1 and args.optimizer.master_weights
    return TrainState(gpt, module, build_optimizer(gpt, args.optimizer, rounded))


def _apply_kernels(gpt: GPT, kernels: Kernels, speed: SpeedArgs, precision: Precision, device: torch.device) -> str:
    """Make attention fast where it is not, and return all the kernels in one line."""
    if device.type == "cuda":
        fuse_attention(gpt, kernels_for_training(device))
    if gpt.config.sliding_window_size is not None:
        install_plans(gpt)
    dtype = torch.float32 if precision == "32-true" else torch.bfloat16
    words = [f"attention {attention_kernel(gpt, gpt.max_seq_length, device, dtype)}", f"loss {kernels.loss}"]
    words += ["compiled"] * kernels.compiled + ["fp8"] * speed.fp8
    words += ["activations recomputed"] * speed.activation_checkpointing
    return ", ".join(words)
