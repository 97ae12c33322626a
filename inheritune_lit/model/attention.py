"""litgpt's attention swapped: made faster without changing what it computes, watched, or told what to attend to.

Everything else of a block stays litgpt's. litgpt hands a mask unchanged to the method that computes attention, so that
a forward pass can hand over an ``AttentionPlan`` instead, which calls that method with the keys and mask it wants.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any, Protocol

import torch
from litgpt.model import GPT, CausalSelfAttention, do_softcapping
from torch.nn import functional as F

Attend = Callable[..., torch.Tensor]
"""litgpt's method: q (B, H, T, D), k and v (B, H, S, D), a mask or None; result (B, T, H, D)."""

_MULTIPLE = 8
"""Flash and cuDNN attention take head sizes that are a multiple of this."""


def swap_attention(attention: CausalSelfAttention, attend: Callable[..., torch.Tensor]) -> Attend:
    """Let a layer compute its attention by another function.

    Args:
        attention: the layer's.
        attend: takes the layer's attention, then what ``Attend`` takes.

    Returns:
        What the layer computed it by before.
    """
    before = attention.scaled_dot_product_attention
    attention.scaled_dot_product_attention = MethodType(attend, attention)
    return before


def pad_head_size(model: GPT) -> bool:
    """Pad queries, keys and values with zeros inside attention where the head size is not a multiple of 8.

    OpenLLaMA-3B's is 100. Zeros add nothing to a dot product, the scale stays that of the true size, and the added
    columns of the output are cut off: the result is the same, and the fast kernels apply.

    Returns:
        Whether the model needed it.
    """
    if model.config.head_size % _MULTIPLE == 0 or model.config.attention_logit_softcapping is not None:
        return False
    for block in model.transformer.h:
        swap_attention(block.attn, _padded_attention)
    return True


def _scale(attention: CausalSelfAttention) -> float:
    config = attention.config
    return (config.attention_scores_scalar or config.head_size) ** -0.5 * attention.mscale * attention.mscale


def _padded_attention(
    self: CausalSelfAttention,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    size = self.config.head_size
    q, k, v = (F.pad(x, (0, -size % _MULTIPLE)) for x in (q, k, v))
    y_BHTD = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=_scale(self), is_causal=mask is None)
    return y_BHTD[..., :size].transpose(1, 2)


def attention_kernel(model: GPT, block_size: int, device: torch.device, dtype: torch.dtype) -> str:
    """Name of the kernel that PyTorch chooses for the model's attention, such as "flash_attention".

    Args:
        block_size: tokens per sample.
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


Receiver = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None]
"""Takes logits (B, H, T, T) without a mask, attention (B, H, T, T) and head outputs (B, H, T, head size), all fp32."""


@contextmanager
def capture_attention(attention: CausalSelfAttention, receive: Receiver) -> Iterator[None]:
    """Make a layer compute its attention plainly and hand its matrices over, within the block.

    The matrices of one call are gone when the next is made unless ``receive`` keeps them.
    """

    def attend(
        self: CausalSelfAttention,
        q_BHTD: torch.Tensor,
        k_BHTD: torch.Tensor,
        v_BHTD: torch.Tensor,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        # Multi-query models come with a single key and value for all heads.
        logits_BHTT = q_BHTD.float() @ k_BHTD.float().mT * _scale(self)
        if self.config.attention_logit_softcapping is not None:
            logits_BHTT = do_softcapping(logits_BHTT, self.config.attention_logit_softcapping)
        T = logits_BHTT.shape[-1]
        if mask is None:
            allowed_TT = torch.ones(T, T, dtype=torch.bool, device=q_BHTD.device).tril()
            attention_BHTT = logits_BHTT.masked_fill(~allowed_TT, -torch.inf).softmax(dim=-1)
        else:
            attention_BHTT = (logits_BHTT + mask).softmax(dim=-1)
        heads_BHTD = attention_BHTT @ v_BHTD.float()
        receive(logits_BHTT, attention_BHTT, heads_BHTD)
        return heads_BHTD.to(q_BHTD.dtype).transpose(1, 2)

    before = swap_attention(attention, attend)
    try:
        yield
    finally:
        attention.scaled_dot_product_attention = before


class AttentionPlan(Protocol):
    """Decides which keys each query of a forward pass sees."""

    def attend(
        self, attend: Attend, layer: "LayerAttention", q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> torch.Tensor:
        """Attention of one layer; ``q``, ``k``, ``v`` are (B, H, T, D), the result is (B, T, H, D)."""


class LayerAttention:
    """How one layer attends.

    Attributes:
        number: the layer.
        window: positions back that it sees, itself included; None for all.
        capped: whether logits are soft-capped, which litgpt combines with additive masks only.
    """

    def __init__(self, number: int, window: int | None, capped: bool) -> None:
        self.number, self.window, self.capped = number, window, capped

    def mask(self, visible: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """The mask that litgpt's method wants, of what is visible (bool)."""
        if not self.capped:
            return visible
        return torch.zeros(visible.shape, dtype=like.dtype, device=like.device).masked_fill_(~visible, float("-inf"))


class CausalPlan:
    """Plain sequences from position 0."""

    def attend(
        self, attend: Attend, layer: LayerAttention, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> torch.Tensor:
        T = q.shape[2]
        if layer.window is None or layer.window >= T:
            return attend(q, k, v, None)
        distance_TT = torch.arange(T, device=q.device)[:, None] - torch.arange(T, device=q.device)
        visible_TT = (distance_TT >= 0) & (distance_TT < layer.window)
        return attend(q, k, v, layer.mask(visible_TT, q))


def install_plans(model: GPT) -> None:
    """Let the model's blocks take an ``AttentionPlan`` where a mask goes. Plain forward passes stay what they were."""
    config = model.config
    for number, block in enumerate(model.transformer.h):
        # litgpt would replace the plan by a mask of its own, which it fills in a loop over positions.
        windowed = getattr(block.attn, "apply_sliding_window_attention", False)
        block.attn.apply_sliding_window_attention = False
        window = config.sliding_window_size if windowed else None
        layer = LayerAttention(number, window, config.attention_logit_softcapping is not None)
        _take_plans(block.attn, layer)


def _take_plans(attention: CausalSelfAttention, layer: LayerAttention) -> None:
    def attend(self: CausalSelfAttention, q: Any, k: Any, v: Any, mask: Any = None) -> torch.Tensor:
        if mask is None and layer.window is not None:
            mask = CausalPlan()
        if mask is None or isinstance(mask, torch.Tensor):
            return before(q, k, v, mask)
        return mask.attend(before, layer, q, k, v)

    before = swap_attention(attention, attend)
