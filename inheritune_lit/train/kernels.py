"""Which kernels a run uses on its device."""

import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from litgpt.model import GPT

from inheritune_lit.checkpoint.config import Config
from inheritune_lit.errors import UserError
from inheritune_lit.model.attention import attention_kernel, pad_head_size
from inheritune_lit.train.args import Precision, SpeedArgs
from inheritune_lit.train.loss import Kernel, choose_kernel

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
        compiled = device.type == "cuda" or (flops >= _WORTH_COMPILING and _has_compiler())
    elif compiled and device.type == "cpu" and not _has_compiler():
        raise UserError("--speed.compile true on CPU needs a C++ compiler and Python.h; install them, or leave it out")
    if distilled:
        return Kernels("distilled", compiled)
    if compiled and speed.loss_kernel == "chunked":
        raise UserError("--speed.loss_kernel chunked cannot be compiled; use plain, or --speed.compile false")
    return Kernels(choose_kernel(speed.loss_kernel, config, device, z_loss, compiled), compiled)


def _has_compiler() -> bool:
    """Whether torch can compile for the CPU."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except (InvalidCxxCompiler, OSError):
        return False
    return Path(sysconfig.get_path("include"), "Python.h").is_file()


def apply_kernels(gpt: GPT, kernels: Kernels, speed: SpeedArgs, precision: Precision, device: torch.device) -> str:
    """Make attention fast where it is not, and tell all the kernels in one line.

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
