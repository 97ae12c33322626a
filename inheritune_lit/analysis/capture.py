"""Attention matrices, which fused kernels never form, taken from one layer at a time."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MethodType

import torch
from litgpt.model import CausalSelfAttention, do_softcapping

from inheritune_lit.checkpoint.litgpt_config import Config
from inheritune_lit.errors import UserError

Receiver = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None]
"""Takes logits (B, H, T, T) without a mask, attention (B, H, T, T) and head outputs (B, H, T, head size), all fp32."""


def check_capturable(config: Config) -> None:
    """Check that a model's attention is made of matrices of softmax weights, one a head.

    Raises:
        UserError: it is not.
    """
    if config.latent_attention or config.n_layer < 1:
        kind = "latent attention" if config.latent_attention else "no layers"
        raise UserError(
            f"{config.name} has {kind}: there are no attention weights to capture; give a model of the LLaMA or GPT-2 "
            "kind"
        )


@contextmanager
def capture(attention: CausalSelfAttention, receive: Receiver) -> Iterator[None]:
    """Make a litgpt attention module compute plainly and hand its matrices over, within the block.

    The matrices of one call are gone when the next is made unless ``receive`` keeps them.
    """
    attention.scaled_dot_product_attention = MethodType(_plain_attention(receive), attention)
    try:
        yield
    finally:
        del attention.scaled_dot_product_attention


def _plain_attention(receive: Receiver) -> Callable[..., torch.Tensor]:
    def attend(
        self: CausalSelfAttention,
        q_BHTD: torch.Tensor,
        k_BHTD: torch.Tensor,
        v_BHTD: torch.Tensor,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """litgpt's method of the same place; result (B, T, H, head size)."""
        scale = (self.config.attention_scores_scalar or self.config.head_size) ** -0.5 * self.mscale**2
        # Multi-query models come with a single key and value for all heads.
        logits_BHTT = q_BHTD.float() @ k_BHTD.float().mT * scale
        if self.config.attention_logit_softcapping is not None:
            logits_BHTT = do_softcapping(logits_BHTT, self.config.attention_logit_softcapping)
        T = logits_BHTT.shape[-1]
        if mask is None:
            allowed = torch.ones(T, T, dtype=torch.bool, device=q_BHTD.device).tril()
            attention_BHTT = logits_BHTT.masked_fill(~allowed, -torch.inf).softmax(dim=-1)
        else:
            attention_BHTT = (logits_BHTT + mask).softmax(dim=-1)
        heads_BHTD = attention_BHTT @ v_BHTD.float()
        receive(logits_BHTT, attention_BHTT, heads_BHTD)
        return heads_BHTD.to(q_BHTD.dtype).transpose(1, 2)

    return attend
