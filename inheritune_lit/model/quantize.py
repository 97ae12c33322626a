"""8- and 4-bit weights by bitsandbytes."""

from typing import Any, Literal, get_args

import torch
from litgpt.model import GPT

from inheritune_lit.errors import UserError, first_line

Quantization = Literal["bnb.nf4", "bnb.nf4-dq", "bnb.fp4", "bnb.fp4-dq", "bnb.int8"]


def quantize_linears(model: GPT, mode: Quantization, device: str | torch.device) -> None:
    """Replace the weights of every linear layer but the head's, and move the model to a device; it keeps its dtype.

    4-bit NormalFloat or float, "-dq" with quantised scales (Dettmers et al., "QLoRA", 2023), or 8-bit (Dettmers et al.,
    "LLM.int8()", 2022). An unknown mode, or one that bitsandbytes does not have here, is a ``UserError``.
    """
    if mode not in (known := get_args(Quantization)):
        raise UserError(f"--quantize is {mode!r}; choose one of {', '.join(known)}")
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise UserError(f"--quantize {mode} needs bitsandbytes; install it, or leave the option out") from error
    try:
        for name, child in list(model.transformer.h.named_modules()):
            if type(child) is torch.nn.Linear:
                model.transformer.h.set_submodule(name, _quantized(child, mode))
        model.to(device)
        _try_each(model.transformer.h[0], device, model.transformer.wte.weight.dtype)
    except (RuntimeError, NotImplementedError, AttributeError) as error:
        kind, reason = torch.device(device).type, first_line(error)
        raise UserError(f"bitsandbytes cannot do {mode} on {kind} ({reason}); choose another --quantize") from error


def _quantized(linear: torch.nn.Linear, mode: Quantization) -> torch.nn.Module:
    """An empty layer of bitsandbytes with this layer's weights, which it quantises when it is moved."""
    import bitsandbytes

    kind = mode.removeprefix("bnb.")
    sizes = linear.in_features, linear.out_features
    layer: torch.nn.Linear
    with torch.device("meta"):
        if kind == "int8":
            layer = bitsandbytes.nn.Linear8bitLt(*sizes, bias=False, has_fp16_weights=False)
            layer.weight = bitsandbytes.nn.Int8Params(linear.weight.data, requires_grad=False, has_fp16_weights=False)
        else:
            options: Any = {"quant_type": kind.removesuffix("-dq"), "compress_statistics": kind.endswith("-dq")}
            layer = bitsandbytes.nn.Linear4bit(*sizes, bias=False, compute_dtype=linear.weight.dtype, **options)
            layer.weight = bitsandbytes.nn.Params4bit(linear.weight.data, requires_grad=False, **options)
    layer.bias = linear.bias
    return layer


def _try_each(block: torch.nn.Module, device: str | torch.device, dtype: torch.dtype) -> None:
    """One token through each layer of a block: some kernels are found missing only when they are called."""
    with torch.inference_mode():
        for layer in block.modules():
            if isinstance(layer, torch.nn.Linear) and type(layer).__module__.startswith("bitsandbytes"):
                layer(torch.zeros(1, layer.in_features, device=device, dtype=dtype))
