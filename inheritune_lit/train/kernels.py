"""Which kernels a run uses on its device."""

from dataclasses import dataclass

import torch
from litgpt.model import GPT

from inheritune_lit.checkpoint.litgpt_config import Config
from inheritune_lit.model.attention import attention_kernel, pad_head_size
from inheritune_lit.train.args import SpeedArgs
from inheritune_lit.train.devices import Precision
from inheritune_lit.train.loss import choose_kernel


@dataclass(frozen=True)
class Kernels:
    """Choices for one device.

    Attributes:
        loss: "plain", "chunked" or "liger".
        compiled: model and loss go through torch.compile.
    """

    loss: str
    compiled: bool


def choose_kernels(config: Config, speed: SpeedArgs, device: torch.device, z_loss: float) -> Kernels:
    """What the settings mean on a device."""
    compiled = device.type == "cuda" if speed.compile is None else speed.compile
    return Kernels(choose_kernel(speed.loss_kernel, config, device, z_loss), compiled)


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
