"""Next-token loss of a litgpt model, with three ways to compute the same number."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from litgpt.model import GPT
from torch.nn import functional as F

from inheritune_lit.checkpoint.config import Config
from inheritune_lit.data.packed import PADDING
from inheritune_lit.errors import UserError

Kernel = Literal["plain", "chunked", "liger"]
LossKernel = Kernel | Literal["auto"]
CHUNK_TOKENS = 1024


class TrainingModel(torch.nn.Module):
    """A model and its loss as one module, so that both are compiled and distributed as one.

    Args:
        gpt: the model.
        kernel: "plain" is ``F.cross_entropy`` on whole logits. "chunked" never holds more than the logits of 1024
            tokens. "liger" is Liger-Kernel's fused in-place kernel, for CUDA.
        z_loss: weight of the squared log-normaliser (PaLM, Section 5), 0 for none; "plain" only.

    Raises:
        UserError: the kernel cannot compute this.
    """

    def __init__(self, gpt: GPT, kernel: Kernel, z_loss: float = 0.0) -> None:
        super().__init__()
        if kernel != "plain" and z_loss:
            raise UserError(f"--train.z_loss {z_loss} needs --speed.loss_kernel plain, not {kernel}")
        if kernel == "chunked" and (gpt.config.final_logit_softcapping is not None or gpt.config.lm_head_bias):
            raise UserError("--speed.loss_kernel chunked takes no soft-capped logits and no head bias; use plain")
        self.gpt, self.kernel, self.z_loss = gpt, kernel, z_loss
        self._fused = _liger_kernel() if kernel == "liger" else None

    def forward(self, inputs_BT: torch.Tensor, targets_BT: torch.Tensor) -> torch.Tensor:
        """Summed cross-entropy in nats, fp32, over the targets that count.

        Args:
            inputs_BT: token ids.
            targets_BT: the ids one position later; ``PADDING`` where none counts.
        """
        targets_N = targets_BT.flatten()
        if self.kernel == "chunked":
            return _chunked_loss(hidden_states(self.gpt, inputs_BT).flatten(0, 1), self.gpt.lm_head.weight, targets_N)
        logits_NV = self.gpt(inputs_BT).flatten(0, 1)
        if self._fused is not None:
            return self._fused(logits_NV, targets_N).float()
        logits_NV = logits_NV.float()
        loss = F.cross_entropy(logits_NV, targets_N, ignore_index=PADDING, reduction="sum")
        if self.z_loss:
            normaliser_N = logits_NV.logsumexp(dim=-1)
            loss = loss + self.z_loss * normaliser_N.square()[targets_N != PADDING].sum()
        return loss


def hidden_states(gpt: GPT, inputs_BT: torch.Tensor, compiled: Callable[..., Any] | None = None) -> torch.Tensor:
    """What goes into the head, (B, T, n_embd): the model with a head that does nothing, and no soft cap behind it.

    Args:
        compiled: the model as torch.compile gave it, to run in its place.
    """
    head, cap = gpt.lm_head, gpt.config.final_logit_softcapping
    gpt.lm_head, gpt.config.final_logit_softcapping = torch.nn.Identity(), None
    try:
        return (gpt if compiled is None else compiled)(inputs_BT)
    finally:
        gpt.lm_head, gpt.config.final_logit_softcapping = head, cap


def choose_kernel(asked: LossKernel, config: Config, device: torch.device, z_loss: float, compiled: bool) -> Kernel:
    """The kernel that "auto" means: the fused one on CUDA where Liger-Kernel is installed, chunks on CPU.

    Chunks are as fast as whole logits and bound their memory, but the compiler cannot see through them.
    """
    if asked != "auto":
        return asked
    if z_loss or config.final_logit_softcapping is not None or config.lm_head_bias:
        return "plain"
    if device.type == "cuda":
        try:
            _liger_kernel()
        except UserError:
            return "plain"
        return "liger"
    return "plain" if compiled else "chunked"


def _liger_kernel() -> torch.nn.Module:
    try:
        from liger_kernel.transformers import LigerCrossEntropyLoss
    except ImportError as error:
        raise UserError(
            "--speed.loss_kernel liger needs Liger-Kernel; install inheritune-lit[gpu], or use plain"
        ) from error
    return LigerCrossEntropyLoss(ignore_index=PADDING, reduction="sum")


def _chunked_loss(hidden_NC: torch.Tensor, weight_VC: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
    if torch.is_autocast_enabled(hidden_NC.device.type):
        dtype = torch.get_autocast_dtype(hidden_NC.device.type)
        hidden_NC, weight_VC = hidden_NC.to(dtype), weight_VC.to(dtype)
    return _ChunkedCrossEntropy.apply(hidden_NC, weight_VC, targets_N)


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Head and loss together; gradients are formed in the forward pass, when a chunk's logits are there anyway."""

    @staticmethod
    def forward(ctx, hidden_NC: torch.Tensor, weight_VC: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
        needs_gradient = any(ctx.needs_input_grad)
        loss = torch.zeros((), dtype=torch.float32, device=hidden_NC.device)
        grad_hidden_NC = torch.empty_like(hidden_NC) if needs_gradient else None
        # Sums over thousands of tokens: bf16 would round most of them away.
        grad_weight_VC = torch.zeros_like(weight_VC, dtype=torch.float32) if needs_gradient else None
        for start in range(0, len(targets_N), CHUNK_TOKENS):
            chunk = slice(start, start + CHUNK_TOKENS)
            logits_NV = (hidden_NC[chunk] @ weight_VC.T).float()
            targets = targets_N[chunk]
            logprobs_NV = torch.log_softmax(logits_NV, dim=-1)
            loss += F.nll_loss(logprobs_NV, targets, ignore_index=PADDING, reduction="sum")
            if grad_hidden_NC is not None and grad_weight_VC is not None:
                counted_N1 = (targets != PADDING).unsqueeze(1)
                grad_NV = logprobs_NV.exp_()
                grad_NV.scatter_add_(1, targets.clamp(min=0).unsqueeze(1), -counted_N1.float())
                grad_NV = (grad_NV * counted_N1).to(hidden_NC.dtype)
                grad_hidden_NC[chunk] = grad_NV @ weight_VC
                if grad_NV.dtype == torch.float32:
                    grad_weight_VC.addmm_(grad_NV.T, hidden_NC[chunk])
                else:
                    grad_weight_VC += grad_NV.T @ hidden_NC[chunk]
        if needs_gradient:
            ctx.save_for_backward(grad_hidden_NC, grad_weight_VC)
            ctx.weight_dtype = weight_VC.dtype
        return loss

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        grad_hidden_NC, grad_weight_VC = ctx.saved_tensors
        # In place: these are this loss's own, and the weight's is as large as the head.
        return grad_hidden_NC.mul_(grad), grad_weight_VC.mul_(grad).to(ctx.weight_dtype), None
