"""What a model costs: FLOPs per token, and the bytes that its blocks keep for the backward pass."""

from dataclasses import replace

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from inheritune_lit.checkpoint.config import Config
from inheritune_lit.io.arguments import Precision
from inheritune_lit.model.attention import swap_attention
from inheritune_lit.model.gpt import build_model, rope_of_layer

LONGEST_BLOCK = 2048  # most tokens per sample where no number is given: the paper's


def flops_per_token(config: Config, block_size: int) -> float:
    """Forward and backward FLOPs per token: 6 per matrix parameter (head included) and 6 * layers * width * T of causal
    attention."""
    qkv_and_projection = (2 * config.n_head + 2 * config.n_query_groups) * config.head_size
    mlp = (3 if config.mlp_class_name in ("LLaMAMLP", "GemmaMLP") else 2) * config.intermediate_size
    matrices = (config.n_layer * (qkv_and_projection + mlp) + config.padded_vocab_size) * config.n_embd
    return 6.0 * (matrices + config.n_layer * config.n_head * config.head_size * block_size)


def kept_bytes(config: Config, samples: int, block_size: int, precision: Precision) -> int:
    """Bytes that autograd keeps of one block for the backward pass, counted by autograd itself without any data."""
    dtype = torch.bfloat16 if precision == "bf16-true" else torch.float32
    default = torch.get_default_dtype()
    with FakeTensorMode():
        torch.set_default_dtype(dtype)
        try:
            model = build_model(replace(config, n_layer=1, block_size=block_size))
        finally:
            torch.set_default_dtype(default)
        block = model.transformer.h[0]
        x_BTC = torch.empty(samples, block_size, config.n_embd, dtype=dtype, requires_grad=True)
        cos, sin = (table[:block_size].unsqueeze(0) for table in model.rope_cache())
        rope = rope_of_layer(model, (cos, sin), 0)
        swap_attention(block.attn, lambda _, q, k, v, mask=None: _FlashLike.apply(q, k, v).transpose(1, 2))
        sizes: dict[int, int] = {parameter.untyped_storage()._cdata: 0 for parameter in block.parameters()}
        keep: list[torch.Tensor] = []  # so that no storage's address is used twice

        def note(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            sizes.setdefault(storage._cdata, storage.nbytes())
            keep.append(tensor)
            return tensor

        with (
            torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
            torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16-mixed"),
        ):
            block(x_BTC, *rope)
        return sum(sizes.values())


class _FlashLike(torch.autograd.Function):
    """Keeps what a fused attention kernel keeps: inputs, output, and one number per row. It is never run backward."""

    @staticmethod
    def forward(ctx, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        output = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, output, torch.empty(q.shape[:-1], dtype=torch.float32))
        return output
