"""litgpt's attention swapped: made faster without changing what it computes, watched, or told what to attend to.

Everything else of a block stays litgpt's. litgpt hands a mask unchanged to the method that computes attention, so that
a forward pass can hand over an ``AttentionPlan`` instead, which calls that method with the keys and mask it wants.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from types import MethodType
from typing import Any, NamedTuple, Protocol

import torch
from litgpt.model import GPT, CausalSelfAttention, do_softcapping
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

Attend = Callable[..., torch.Tensor]
"""litgpt's method: q (B, H, T, D), k and v (B, H, S, D), a mask or None; result (B, T, H, D)."""

_MULTIPLE = 8  # of which flash and cuDNN attention take head sizes


def swap_attention(attention: CausalSelfAttention, attend: Callable[..., torch.Tensor]) -> Attend:
    """Let a layer compute attention by a function of its module and what ``Attend`` takes; return the one of before."""
    before = attention.scaled_dot_product_attention
    attention.scaled_dot_product_attention = MethodType(attend, attention)
    return before


def fuse_attention(model: GPT, kernels: Sequence[SDPBackend] = (), attention: Attend | None = None) -> None:
    """Let attention on a GPU run in PyTorch's fused kernels, on as little as they need; soft-capped logits have none.

    Heads are padded with zeros to a size of n * 8 inside attention (OpenLLaMA-3B's is 100): zeros add nothing to a dot
    product, the scale stays that of the true size, and the added columns are cut off. Keys and values that queries
    share are not repeated where there is no mask, and the type has 16 bits. ``kernels`` are tried in their order, in
    PyTorch's where there are none; ``attention`` takes the place of ``F.scaled_dot_product_attention``.
    """
    if model.config.attention_logit_softcapping is not None:
        return
    repeats, missing = model.config.n_head // model.config.n_query_groups, -model.config.head_size % _MULTIPLE
    order = list(kernels)

    def attend(self: CausalSelfAttention, q: Any, k: Any, v: Any, mask: Any = None) -> torch.Tensor:
        shared = mask is None and repeats > 1 and q.element_size() == 2
        if shared and k.shape[1] == q.shape[1]:  # litgpt has repeated them
            k, v = k[:, ::repeats], v[:, ::repeats]
        if missing:
            q, k, v = (F.pad(x, (0, missing)) for x in (q, k, v))
        options = {"attn_mask": mask, "is_causal": mask is None, "enable_gqa": shared, "scale": _scale(self)}
        with sdpa_kernel(order, set_priority=True) if order else nullcontext():
            y_BHTD = (attention or F.scaled_dot_product_attention)(q, k, v, **options)
        return y_BHTD[..., : self.config.head_size].transpose(1, 2)

    for block in model.transformer.h:
        swap_attention(block.attn, attend)


def kernels_for_training(device: torch.device) -> list[SDPBackend]:
    """The order of kernels to try: cuDNN's first on Hopper and Blackwell, where it is the fastest; else PyTorch's.

    For samples of one length: cuDNN prepares itself anew for each, so that evaluation is left to PyTorch.
    """
    hopper = device.type == "cuda" and torch.cuda.get_device_capability(device)[0] in (9, 10)
    names = ("CUDNN_ATTENTION", "FLASH_ATTENTION", "EFFICIENT_ATTENTION", "MATH") if hopper else ()
    return [getattr(SDPBackend, name) for name in names]


def _scale(attention: CausalSelfAttention) -> float:
    config = attention.config
    return (config.attention_scores_scalar or config.head_size) ** -0.5 * attention.mscale * attention.mscale


def attention_kernel(model: GPT, block_size: int, device: torch.device, dtype: torch.dtype) -> str:
    """Name of the kernel that PyTorch chooses for attention over a block in a dtype, such as "flash_attention"."""
    config = model.config
    if config.attention_logit_softcapping is not None:
        return "eager (logit soft-capping)"
    windowed = config.sliding_window_size is not None and config.sliding_window_size < block_size
    fused = device.type == "cuda"
    shared = fused and not windowed and config.n_query_groups < config.n_head and dtype.itemsize == 2
    size, groups = config.head_size, config.n_query_groups if shared else config.n_head
    shapes = [(1, heads, block_size, size + -size % _MULTIPLE * fused) for heads in (config.n_head, groups, groups)]
    q, k, v = (torch.empty(shape, dtype=dtype, device=device, requires_grad=True) for shape in shapes)
    mask = torch.zeros(block_size, block_size, dtype=torch.bool, device=device) if windowed else None
    kernels = kernels_for_training(device)
    with sdpa_kernel(kernels, set_priority=True) if kernels else nullcontext():
        chosen = torch._fused_sdp_choice(q, k, v, attn_mask=mask, is_causal=not windowed, enable_gqa=shared)
    return SDPBackend(chosen).name.lower()


class Captured(NamedTuple):
    """Logits (B, H, T, T) without a mask, attention (B, H, T, T) and head outputs (B, H, T, head size), all fp32."""

    logits_BHTT: torch.Tensor
    attention_BHTT: torch.Tensor
    heads_BHTD: torch.Tensor


@contextmanager
def capture_attention(attention: CausalSelfAttention) -> Iterator[list[Captured]]:
    """Make a layer compute its attention plainly within the block; the list gets the matrices of each call."""
    calls: list[Captured] = []

    def attend(self: CausalSelfAttention, q: Any, k: Any, v: Any, mask: torch.Tensor | None = None) -> torch.Tensor:
        # Multi-query models come with a single key and value for all heads.
        logits_BHTT = q.float() @ k.float().mT * _scale(self)
        if self.config.attention_logit_softcapping is not None:
            logits_BHTT = do_softcapping(logits_BHTT, self.config.attention_logit_softcapping)
        if mask is None:
            mask = torch.full_like(logits_BHTT[0, 0], -torch.inf).triu(1)
        attention_BHTT = (logits_BHTT + mask).softmax(dim=-1)
        heads_BHTD = attention_BHTT @ v.float()
        calls.append(Captured(logits_BHTT, attention_BHTT, heads_BHTD))
        return heads_BHTD.to(q.dtype).transpose(1, 2)

    before = swap_attention(attention, attend)
    try:
        yield calls
    finally:
        attention.scaled_dot_product_attention = before


class AttentionPlan(Protocol):
    """Decides which keys each query of a forward pass sees."""

    def attend(self, attend: Attend, layer: "LayerAttention", q: Any, k: Any, v: Any) -> torch.Tensor:
        """Attention of one layer; ``q``, ``k``, ``v`` are (B, H, T, D), the result is (B, T, H, D)."""


@dataclass(frozen=True)
class LayerAttention:
    """How one layer attends."""

    number: int
    window: int | None  # positions back that it sees, itself included; None for all
    capped: bool  # whether logits are soft-capped, which litgpt combines with additive masks only

    def mask(self, visible: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """The mask that litgpt's method wants, of what is visible (bool)."""
        if not self.capped:
            return visible
        return torch.zeros(visible.shape, dtype=like.dtype, device=like.device).masked_fill_(~visible, float("-inf"))

    def attend_causally(self, attend: Attend, q: torch.Tensor, k: Any, v: Any) -> torch.Tensor:
        """Attention of plain sequences from position 0."""
        if self.window is None or self.window >= q.shape[2]:
            return attend(q, k, v, None)
        position_T = torch.arange(q.shape[2], device=q.device)
        distance_TT = position_T[:, None] - position_T
        return attend(q, k, v, self.mask((distance_TT >= 0) & (distance_TT < self.window), q))


def install_plans(model: GPT) -> None:
    """Let the model's blocks take an ``AttentionPlan`` where a mask goes. Plain forward passes stay what they were."""
    for number, block in enumerate(model.transformer.h):
        # litgpt would replace the plan by a mask of its own, which it fills in a loop over positions.
        windowed = getattr(block.attn, "apply_sliding_window_attention", False)
        block.attn.apply_sliding_window_attention = False
        window = model.config.sliding_window_size if windowed else None
        layer = LayerAttention(number, window, model.config.attention_logit_softcapping is not None)
        attend = partial(_attend_as_planned, block.attn.scaled_dot_product_attention, layer)
        block.attn.scaled_dot_product_attention = attend


def _attend_as_planned(
    attend: Attend, layer: LayerAttention, q: Any, k: Any, v: Any, mask: torch.Tensor | AttentionPlan | None = None
) -> torch.Tensor:
    if mask is None:
        return layer.attend_causally(attend, q, k, v)
    return attend(q, k, v, mask) if isinstance(mask, torch.Tensor) else mask.attend(attend, layer, q, k, v)
