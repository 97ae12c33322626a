"""Attention made fast without changing what it computes."""

from types import MethodType

import torch
from litgpt.model import GPT, CausalSelfAttention
from torch.nn import functional as F

_MULTIPLE = 8
"""Flash and cuDNN attention take head sizes that are a multiple of this."""


def pad_head_size(model: GPT) -> bool:
    """Pad queries, keys and values with zeros inside attention where the head size is no multiple of 8.

    OpenLLaMA-3B's is 100. Zeros add nothing to a dot product, the scale stays that of the true size, and the added
    columns of the output are cut off: the result is the same, and the fast kernels apply.

    Returns:
        Whether the model needed it.
    """
    if model.config.head_size % _MULTIPLE == 0 or model.config.attention_logit_softcapping is not None:
        return False
    for block in model.transformer.h:
        block.attn.scaled_dot_product_attention = MethodType(_padded_attention, block.attn)
    return True


def _padded_attention(
    self: CausalSelfAttention,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """litgpt's method of the same name; q (B, n_head, T, head_size), result (B, T, n_head, head_size)."""
    size = self.config.head_size
    scale = (self.config.attention_scores_scalar or size) ** -0.5 * self.mscale * self.mscale
    q, k, v = (F.pad(x, (0, -size % _MULTIPLE)) for x in (q, k, v))
    y_BHTD = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, is_causal=mask is None)
    return y_BHTD[..., :size].transpose(1, 2)


def attention_kernel(model: GPT, block_size: int, device: torch.device, dtype: torch.dtype) -> str:
    """Name of the kernel that PyTorch chooses for the model's attention, such as "flash_attention".

    Args:
        block_size: tokens a sample.
        dtype: what attention computes in.
    """
    config = model.config
    if config.attention_logit_softcapping is not None:
        return "eager (logit soft-capping)"
    size = config.head_size + -config.head_size % _MULTIPLE * (device.type == "cuda")
    shape = (1, config.n_head, block_size, size)
    q, k, v = (torch.empty(shape, dtype=dtype, device=device, requires_grad=True) for _ in range(3))
    mask = None
    if config.sliding_window_size is not None:
        mask = torch.zeros(block_size, block_size, dtype=dtype, device=device)
    chosen = torch._fused_sdp_choice(q, k, v, attn_mask=mask, is_causal=mask is None)
    return torch.nn.attention.SDPBackend(chosen).name.lower()
