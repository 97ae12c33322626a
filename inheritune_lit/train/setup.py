"""What a run needs of its machine: kernels chosen, packages checked, and the model made ready for training."""

import logging
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, cast

import torch
from lightning.fabric import Fabric
from litgpt.model import GPT

from inheritune_lit.checkpoint.config import Config
from inheritune_lit.errors import UserError
from inheritune_lit.model.attention import attention_kernel, pad_head_size
from inheritune_lit.model.devices import has_compiler
from inheritune_lit.model.forward import checkpoint_activations
from inheritune_lit.model.load import load_model
from inheritune_lit.train.args import LoggerName, OptimizerArgs, Precision, SpeedArgs
from inheritune_lit.train.distillation import Distillation
from inheritune_lit.train.loss import Kernel, TrainingModel, choose_kernel
from inheritune_lit.train.optim import build_optimizer

logger = logging.getLogger(__name__)

_WORTH_COMPILING = 1e14
"""FLOPs from which a run on CPU is compiled: it saves more than the minute that the compiler takes."""


@dataclass(frozen=True)
class Kernels:
    """Choices for one device.

    Attributes:
        loss: "plain", "chunked", "liger" or "distilled".
        compiled: model and loss go through torch.compile.
    """

    loss: Kernel | Literal["distilled"]
    compiled: bool


def choose_kernels(
    config: Config, speed: SpeedArgs, device: torch.device, z_loss: float, flops: float, distilled: bool = False
) -> Kernels:
    """What the settings mean on a device.

    Args:
        flops: of the whole run.
        distilled: there is a teacher, and so a loss of its own, which is not compiled.

    Raises:
        UserError: the settings contradict each other, or need a compiler that is not there.
    """
    compiled = speed.compile
    if compiled is None:
        compiled = device.type == "cuda" or (flops >= _WORTH_COMPILING and has_compiler())
    elif compiled and device.type == "cpu" and not has_compiler():
        raise UserError("--speed.compile true on CPU needs a C++ compiler and Python.h; install them, or leave it out")
    if distilled:
        return Kernels("distilled", compiled)
    if compiled and speed.loss_kernel == "chunked":
        raise UserError("--speed.loss_kernel chunked cannot be compiled; use plain, or --speed.compile false")
    return Kernels(choose_kernel(speed.loss_kernel, config, device, z_loss, compiled), compiled)


def apply_kernels(gpt: GPT, kernels: Kernels, speed: SpeedArgs, precision: Precision, device: torch.device) -> str:
    """Make attention fast where it is not, and return all the kernels in one line.

    Args:
        gpt: the model, on its device.
    """
    padded = device.type == "cuda" and pad_head_size(gpt)
    dtype = torch.float32 if precision == "32-true" else torch.bfloat16
    attention = attention_kernel(gpt, gpt.max_seq_length, device, dtype)
    words = [f"attention {attention}{' with padded heads' if padded else ''}", f"loss {kernels.loss}"]
    words += ["compiled"] * kernels.compiled + ["fp8"] * speed.fp8
    words += ["activations recomputed"] * speed.activation_checkpointing
    return ", ".join(words)


def check_machine(
    optimizer: OptimizerArgs, speed: SpeedArgs, device: torch.device, logger_name: LoggerName = "csv"
) -> None:
    """Refuse settings that this machine cannot serve.

    Args:
        device: where the run computes.

    Raises:
        UserError: no such optimizer or it does not take its arguments, no fp8 here, or a package is missing.
    """
    build_optimizer(torch.nn.Linear(1, 1, device=device), optimizer)
    if speed.fp8:
        _check_fp8(device)
    if logger_name in ("wandb", "mlflow"):  # TensorBoard comes with this package
        try:
            import_module(logger_name)
        except ImportError as error:
            raise UserError(
                f"--logger_name {logger_name} needs the package {logger_name}; install it, or use csv"
            ) from error


def _check_fp8(device: torch.device) -> None:
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 9):
        raise UserError(f"--speed.fp8 needs a Hopper or Ada GPU, this run is on {device.type}; leave it out")
    if find_spec("torchao") is None:
        raise UserError("--speed.fp8 needs torchao; install inheritune-lit[gpu], or leave it out")


@dataclass
class TrainState:
    """What a run changes: weights, and the optimizer over them.

    Attributes:
        gpt: the model.
        loss: the model and its loss as fabric set them up: inputs (B, T) and targets (B, T) to summed nats.
        optimizer: over the model's parameters.
    """

    gpt: GPT
    loss: Any  # as fabric wraps a module: the wrapper has no public name
    optimizer: torch.optim.Optimizer


def prepare_model(initial_checkpoint_dir: Path, precision: Precision, speed: SpeedArgs, block_size: int) -> GPT:
    """Load a checkpoint on the CPU in the type that its weights are trained in.

    Raises:
        UserError: the folder is not a checkpoint.
    """
    gpt = load_model(initial_checkpoint_dir, dtype=torch.bfloat16 if precision == "bf16-true" else torch.float32)
    gpt.max_seq_length = block_size
    if speed.activation_checkpointing:
        checkpoint_activations(gpt)
    return gpt


def set_up(
    fabric: Fabric,
    gpt: GPT,
    optimizer: OptimizerArgs,
    speed: SpeedArgs,
    precision: Precision,
    kernels: Kernels,
    z_loss: float,
    distillation: Distillation | None = None,
) -> TrainState:
    """Move the model to its device and add kernels, compiler, loss and optimizer; say which were chosen.

    ``check_machine`` says beforehand whether the settings can be served.
    """
    if speed.fp8:
        _use_fp8(gpt)
    chosen = apply_kernels(gpt, kernels, speed, precision, fabric.device)
    if fabric.global_rank == 0:
        logger.info(f"      {chosen}")
    if distillation:
        if distillation.teacher:
            apply_kernels(distillation.teacher.gpt, kernels, speed, precision, fabric.device)
        model: torch.nn.Module = distillation.model(gpt, kernels.compiled, fabric.device)
    else:
        assert kernels.loss != "distilled"
        model = TrainingModel(gpt, kernels.loss, z_loss)
        if kernels.compiled:
            model = cast(torch.nn.Module, torch.compile(model, dynamic=False))
    return TrainState(gpt, fabric.setup_module(model), build_optimizer(gpt, optimizer))


def _use_fp8(gpt: GPT) -> None:
    """Swap the blocks' linear layers for torchao's, which multiply in fp8 with a scale per tensor."""
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    # The head stays in bf16: its gradients span too many magnitudes.
    convert_to_float8_training(
        gpt,
        config=Float8LinearConfig.from_recipe_name("tensorwise"),
        module_filter_fn=lambda module, name: name != "lm_head" and all(size % 16 == 0 for size in module.weight.shape),
    )
