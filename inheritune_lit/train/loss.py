"""Losses of training: next-token cross-entropy, computed in three ways, and the distillation from a teacher."""

from collections.abc import Callable
from typing import Literal

import torch
from torch.nn import functional as F

from inheritune_lit.checkpoint.config import Config
from inheritune_lit.data.packed import PADDING
from inheritune_lit.errors import UserError
from inheritune_lit.model.forward import head_logits
from inheritune_lit.model.gpt import Transformer
from inheritune_lit.train.args import DistillArgs, LossKernel

Kernel = Literal["plain", "chunked", "liger"]
CHUNK_TOKENS = 1024
ChunkLoss = Callable[[torch.Tensor, slice], torch.Tensor]
"""Summed loss of some tokens: takes their logits (N, V) in fp32, and which tokens these are."""


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

    def __init__(self, gpt: Transformer, kernel: Kernel, z_loss: float = 0.0) -> None:
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

            def chunk_loss(logits_NV: torch.Tensor, chunk: slice) -> torch.Tensor:
                return F.cross_entropy(logits_NV, targets_N[chunk], ignore_index=PADDING, reduction="sum")

            return chunked_loss(self.gpt, self.gpt.hidden_states(inputs_BT).flatten(0, 1), chunk_loss)
        logits_NV = self.gpt(inputs_BT).flatten(0, 1)
        if self._fused is not None:
            return self._fused(logits_NV, targets_N).float()
        logits_NV = logits_NV.float()
        loss = F.cross_entropy(logits_NV, targets_N, ignore_index=PADDING, reduction="sum")
        if self.z_loss:
            normaliser_N = logits_NV.logsumexp(dim=-1)
            loss = loss + self.z_loss * normaliser_N.square()[targets_N != PADDING].sum()
        return loss


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


def chunked_loss(gpt: Transformer, hidden_NC: torch.Tensor, chunk_loss: ChunkLoss) -> torch.Tensor:
    """Head and loss together, never holding more than the logits of 1024 tokens.

    Args:
        gpt: whose head to use.
        hidden_NC: what goes into the head.
        chunk_loss: called with each chunk's logits in turn.
    """
    return _ChunkedLoss.apply(gpt, chunk_loss, hidden_NC, *gpt.lm_head.parameters())


class _ChunkedLoss(torch.autograd.Function):
    """Gradients are formed in the forward pass, when a chunk's logits are there anyway."""

    @staticmethod
    def forward(
        ctx, gpt: Transformer, chunk_loss: ChunkLoss, hidden_NC: torch.Tensor, *head: torch.Tensor
    ) -> torch.Tensor:
        needs_gradient = any(ctx.needs_input_grad)
        loss = torch.zeros((), dtype=torch.float32, device=hidden_NC.device)
        grads = []
        if needs_gradient:
            # Sums over thousands of tokens: bf16 would round most of them away.
            grads = [torch.empty_like(hidden_NC), *(torch.zeros_like(weight, dtype=torch.float32) for weight in head)]
        for start in range(0, len(hidden_NC), CHUNK_TOKENS):
            chunk = slice(start, start + CHUNK_TOKENS)
            with torch.set_grad_enabled(needs_gradient):
                part_NC = hidden_NC[chunk].detach().requires_grad_(needs_gradient)
                part = chunk_loss(head_logits(gpt, part_NC), chunk)
            loss += part.detach()
            if needs_gradient:
                grads[0][chunk], *of_head = torch.autograd.grad(part, (part_NC, *head))
                for total, grad in zip(grads[1:], of_head, strict=True):
                    total += grad
        ctx.save_for_backward(*grads)
        ctx.dtypes = [hidden_NC.dtype, *(weight.dtype for weight in head)]
        return loss

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        # In place: these are this loss's own, and the head's is as large as the head.
        scaled = (total.mul_(grad).to(dtype) for total, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True))
        return None, None, *scaled


class DistillationModel(torch.nn.Module):
    """A student and its loss as one module.

    Args:
        gpt: the student.
        distill: weights of the parts.
        teacher: frozen, on the student's device; None where its predictions come with the data.
        compiled: all but heads and loss go through torch.compile, which cannot see through the loss's chunks.
    """

    def __init__(
        self, gpt: Transformer, distill: DistillArgs, teacher: Transformer | None, compiled: bool = False
    ) -> None:
        super().__init__()
        self.gpt, self.distill = gpt, distill
        self._hidden_states = torch.compile(_hidden_states, dynamic=False) if compiled else _hidden_states
        # In a tuple, out of torch's sight: what copies, shards or saves the trained module has no business with it.
        self._teacher = (teacher,)

    def forward(
        self,
        inputs_BT: torch.Tensor,
        targets_BT: torch.Tensor,
        top_ids_BTK: torch.Tensor | None = None,
        top_logprobs_BTK: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Summed loss in nats, fp32, over the targets that count.

        Args:
            inputs_BT: token ids.
            targets_BT: the ids one position later; ``PADDING`` where none counts.
            top_ids_BTK, top_logprobs_BTK: the teacher's likeliest tokens and their log-probabilities at the loss's
                temperature, where there is no teacher.
        """
        (teacher,), distill = self._teacher, self.distill
        targets_N = targets_BT.flatten()
        hidden_NC = self._hidden_states(self.gpt, inputs_BT).flatten(0, 1)
        if teacher is None:
            assert top_ids_BTK is not None and top_logprobs_BTK is not None
            ids_NK, logprobs_NK = top_ids_BTK.flatten(0, 1), top_logprobs_BTK.flatten(0, 1)

            def divergence_N(logits_NV: torch.Tensor, chunk: slice) -> torch.Tensor:
                return top_divergence(logits_NV, ids_NK[chunk], logprobs_NK[chunk], distill.temperature)
        else:
            with torch.no_grad():
                teacher_NC = self._hidden_states(teacher, inputs_BT).flatten(0, 1)

            def divergence_N(logits_NV: torch.Tensor, chunk: slice) -> torch.Tensor:
                with torch.no_grad():
                    teacher_NV = head_logits(teacher, teacher_NC[chunk])
                return divergence(logits_NV, teacher_NV, distill.temperature)

        def chunk_loss(logits_NV: torch.Tensor, chunk: slice) -> torch.Tensor:
            plain = F.cross_entropy(logits_NV, targets_N[chunk], ignore_index=PADDING, reduction="sum")
            soft = divergence_N(logits_NV, chunk)[targets_N[chunk] != PADDING].sum()
            return distill.alpha * plain + (1 - distill.alpha) * soft

        loss = chunked_loss(self.gpt, hidden_NC, chunk_loss)
        if distill.kind == "distilbert":
            apart_N = 1 - F.cosine_similarity(hidden_NC.float(), teacher_NC.float(), dim=-1)
            loss = loss + distill.cosine * apart_N[targets_N != PADDING].sum()
        return loss


def _hidden_states(gpt: Transformer, inputs_BT: torch.Tensor) -> torch.Tensor:
    return gpt.hidden_states(inputs_BT)


def divergence(logits_NV: torch.Tensor, teacher_NV: torch.Tensor, temperature: float) -> torch.Tensor:
    """temperature^2 * KL(teacher || student) in nats, shape (N,), both softened by the temperature."""
    logprobs_NV = F.log_softmax(logits_NV / temperature, dim=-1)
    teacher_logprobs_NV = F.log_softmax(teacher_NV / temperature, dim=-1)
    return temperature**2 * (teacher_logprobs_NV.exp() * (teacher_logprobs_NV - logprobs_NV)).sum(dim=-1)


def top_divergence(
    logits_NV: torch.Tensor, ids_NK: torch.Tensor, teacher_NK: torch.Tensor, temperature: float
) -> torch.Tensor:
    """As ``divergence``, with what the teacher thinks of its K likeliest tokens; all others count as one.

    That is the divergence itself for K = V, and at most it for fewer: unlike a teacher renormalised over K tokens, it
    asks for no more of them than the teacher gave.

    Args:
        logits_NV: the student's.
        ids_NK: tokens, each once.
        teacher_NK: the teacher's log-probabilities of them at the temperature.
    """
    logits_NV = logits_NV / temperature
    chosen_NK = logits_NV.gather(1, ids_NK)
    logprobs_NK = chosen_NK - logits_NV.logsumexp(dim=-1, keepdim=True)
    probs_NK = teacher_NK.exp()
    loss_N = (probs_NK * (teacher_NK - logprobs_NK)).sum(dim=-1)
    if ids_NK.shape[1] < logits_NV.shape[1]:
        # The student's logarithm of the rest from the rest's own logits: 1 minus a sum near 1 has no digits left.
        others_NV = logits_NV.scatter(1, ids_NK, -torch.inf)
        log_rest_N = others_NV.logsumexp(dim=-1) - logits_NV.logsumexp(dim=-1)
        rest_N = (1 - probs_NK.sum(dim=-1)).clamp(min=0)
        loss_N = loss_N + torch.special.xlogy(rest_N, rest_N) - rest_N * log_rest_N
    return temperature**2 * loss_N
