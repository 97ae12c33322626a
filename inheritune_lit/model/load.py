"""litgpt checkpoints into litgpt models, with their weights as they are or in 8 and 4 bits by bitsandbytes."""

from pathlib import Path
from typing import Any, get_args

import torch
from litgpt.model import GPT

from inheritune_lit.checkpoint.config import load_config
from inheritune_lit.checkpoint.folder import MODEL_CONFIG, WEIGHTS, require_checkpoint
from inheritune_lit.checkpoint.tensors import EMBEDDING, HEAD, mismatch
from inheritune_lit.checkpoint.weights import load_torch_file
from inheritune_lit.errors import UserError, first_line
from inheritune_lit.io.arguments import Quantization
from inheritune_lit.model.gpt import Transformer, build_model

Device = str | torch.device
State = dict[str, torch.Tensor]


def load_state(checkpoint_dir: Path) -> State:
    """Map ``lit_model.pth`` into memory, read when used; damage, or more than tensors in it, is a ``UserError``."""
    require_checkpoint(checkpoint_dir)
    return load_torch_file(checkpoint_dir / WEIGHTS)


def is_tied(state: State) -> bool:
    """Whether the token embedding and the head are one tensor: they share their storage in the file."""
    return {EMBEDDING, HEAD} <= state.keys() and state[EMBEDDING].data_ptr() == state[HEAD].data_ptr()


def load_model(checkpoint_dir: Path, dtype: torch.dtype | None = None, device: Device = "cpu") -> Transformer:
    """Build a litgpt checkpoint's model with its weights; a tied head stays tied.

    The parameters have a dtype, as stored when None; RoPE tables stay fp32. A folder that is not a checkpoint, or whose
    weights and ``model_config.yaml`` disagree, is a ``UserError``.
    """
    config, state = load_config(checkpoint_dir), load_state(checkpoint_dir)
    with torch.device("meta"):
        model = build_model(config)
    shapes = [{name: tuple(tensor.shape) for name, tensor in each.items()} for each in (model.state_dict(), state)]
    if complaint := mismatch(*shapes):
        raise UserError(
            f"{checkpoint_dir / WEIGHTS} does not fit {MODEL_CONFIG} ({config.n_layer} layers): {complaint}; "
            "make the checkpoint again"
        )
    return with_weights(model, state, is_tied(state), dtype, device)


def with_weights(
    model: Transformer, state: State, tied: bool, dtype: torch.dtype | None, device: Device
) -> Transformer:
    """Give a model that was built on the meta device its weights; a tied head may be left out of ``state``."""
    model.load_state_dict(state if HEAD in state else {**state, HEAD: state[EMBEDDING]}, strict=True, assign=True)
    # RoPE tables are buffers: the meta model's hold nothing, and a cast would round their angles.
    model.cos = model.sin = None
    model.to(device=device, dtype=dtype)
    if tied:
        model.lm_head.weight = model.transformer.wte.weight
    model.cos, model.sin = model.rope_cache(device=torch.device(device))
    return model


def quantize_linears(model: GPT, mode: Quantization, device: Device) -> None:
    """Replace the weights of every linear layer but the head's, and move the model to a device; it keeps its dtype.

    4-bit NormalFloat or float, "-dq" with quantised scales (Dettmers et al., "QLoRA", 2023), or 8-bit (Dettmers et al.,
    "LLM.int8()", 2022). An unknown mode, or one that bitsandbytes does not have here, is a ``UserError``.
    """
    if mode not in (known := get_args(Quantization)):
        raise UserError(f"--quantize is {mode!r}; choose one of {', '.join(known)}")
    try:
        import bitsandbytes
    except ImportError as error:
        raise UserError(f"--quantize {mode} needs bitsandbytes; install it, or leave the option out") from error
    layer: torch.nn.Linear
    kind = mode.removeprefix("bnb.")
    options: Any = {"quant_type": kind.removesuffix("-dq"), "compress_statistics": kind.endswith("-dq")}
    try:
        for name, linear in list(model.transformer.h.named_modules()):
            if type(linear) is not torch.nn.Linear:
                continue
            sizes, weight = (linear.in_features, linear.out_features), linear.weight
            with torch.device("meta"):  # empty layers, whose weights are quantised when they are moved
                if kind == "int8":
                    layer = bitsandbytes.nn.Linear8bitLt(*sizes, bias=False, has_fp16_weights=False)
                    layer.weight = bitsandbytes.nn.Int8Params(weight.data, requires_grad=False, has_fp16_weights=False)
                else:
                    layer = bitsandbytes.nn.Linear4bit(*sizes, bias=False, compute_dtype=weight.dtype, **options)
                    layer.weight = bitsandbytes.nn.Params4bit(weight.data, requires_grad=False, **options)
            layer.bias = linear.bias
            model.transformer.h.set_submodule(name, layer)
        model.to(device)
        _try_each(model.transformer.h[0], device, model.transformer.wte.weight.dtype)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, NotImplementedError, AttributeError) as error:
        kind, reason = torch.device(device).type, first_line(error)
        raise UserError(f"bitsandbytes cannot do {mode} on {kind} ({reason}); choose another --quantize") from error


def _try_each(block: torch.nn.Module, device: Device, dtype: torch.dtype) -> None:
    """One token through each layer of a block: some kernels are found missing only when they are called."""
    with torch.inference_mode():
        for layer in block.modules():
            if isinstance(layer, torch.nn.Linear) and type(layer).__module__.startswith("bitsandbytes"):
                layer(torch.zeros(1, layer.in_features, device=device, dtype=dtype))
