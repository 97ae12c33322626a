"""Losses of training: next-token cross-entropy, computed in two ways, and the distillation from a teacher."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch.nn import functional as F

from inheritune_lit.data.packed import PADDING
from inheritune_lit.model.gpt import Transformer, head_logits
from inheritune_lit.train.args import DistillArgs

Kernel = Literal["plain", "chunked", "distilled"]
CHUNK_TOKENS = 1024
ChunkLoss = Callable[[torch.Tensor, slice], torch.Tensor]
"""Summed loss of some tokens: takes their logits (N, V) in fp32, and which tokens these are."""


class TrainingModel(torch.nn.Module):
    """A model and its loss as one module, so that both are compiled and distributed as one.

    The kernel "plain" is ``F.cross_entropy`` on whole logits, "chunked" never holds more than the logits of 1024
    tokens. ``z_loss`` is the weight of the squared log-normaliser (PaLM, Section 5) in the plain loss, 0 for none.
    """

    def __init__(self, gpt: Transformer, kernel: Kernel, z_loss: float = 0.0) -> None:
        super().__init__()
        self.gpt, self.kernel, self.z_loss = gpt, kernel, z_loss

    def forward(self, inputs_BT: torch.Tensor, targets_BT: torch.Tensor) -> torch.Tensor:
        """Summed cross-entropy in nats, fp32; targets are token ids, or ``PADDING`` where none counts."""
        targets_N = targets_BT.flatten()
        if self.kernel == "chunked":
            hidden_NC = self.gpt.hidden_states(inputs_BT).flatten(0, 1)
            return chunked_loss(self.gpt, hidden_NC, lambda logits, chunk: _cross_entropy(logits, targets_N[chunk]))
        logits_NV = self.gpt(inputs_BT).flatten(0, 1).float()
        loss = _cross_entropy(logits_NV, targets_N)
        if self.z_loss:
            loss = loss + self.z_loss * _counted_sum(logits_NV.logsumexp(dim=-1).square(), targets_N)
        return loss


def _cross_entropy(logits_NV: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits_NV, targets_N, ignore_index=PADDING, reduction="sum")


def _counted_sum(values_N: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
    """Sums what is not of padding; choosing it by an index would make the host wait for a GPU to count it."""
    return values_N.masked_fill(targets_N == PADDING, 0.0).sum()


def chunked_loss(gpt: Transformer, hidden_NC: torch.Tensor, chunk_loss: ChunkLoss) -> torch.Tensor:
    """Sums ``chunk_loss`` over the head's logits, never holding more than those of 1024 tokens."""
    return _ChunkedLoss.apply(gpt, chunk_loss, hidden_NC, *gpt.lm_head.parameters())


class _ChunkedLoss(torch.autograd.Function):
    """Gradients are formed in the forward pass, when a chunk's logits are there anyway."""

    @staticmethod
    def forward(
        ctx, gpt: Transformer, chunk_loss: ChunkLoss, hidden_NC: torch.Tensor, *head: torch.Tensor
    ) -> torch.Tensor:
        needs_hidden, *needs_head = ctx.needs_input_grad[2:]
        trained = [weight for weight, needed in zip(head, needs_head, strict=True) if needed]
        needs_gradient = needs_hidden or bool(trained)
        # Sums over thousands of tokens: bf16 would round most of them away.
        head_grads = [torch.zeros_like(weight, dtype=torch.float32) for weight in trained]
        hidden_grads = [torch.empty_like(hidden_NC)] * needs_hidden
        loss = torch.zeros((), dtype=torch.float32, device=hidden_NC.device)
        for start in range(0, len(hidden_NC), CHUNK_TOKENS):
            chunk = slice(start, start + CHUNK_TOKENS)
            with torch.set_grad_enabled(needs_gradient):
                part_NC = hidden_NC[chunk].detach().requires_grad_(needs_hidden)
                part = chunk_loss(head_logits(gpt, part_NC), chunk)
            loss += part.detach()
            if needs_gradient:
                of_head = list(torch.autograd.grad(part, [*trained, *[part_NC] * needs_hidden]))
                if needs_hidden:
                    hidden_grads[0][chunk] = of_head.pop()
                for total, grad in zip(head_grads, of_head, strict=True):
                    total += grad
        ctx.save_for_backward(*hidden_grads, *head_grads)
        ctx.dtypes = [hidden_NC.dtype] * needs_hidden + [weight.dtype for weight in trained]
        return loss

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        # In place: these are this loss's own, and the head's is as large as the head.
        scaled = (total.mul_(grad).to(dtype) for total, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True))
        return tuple(next(scaled) if needed else None for needed in ctx.needs_input_grad)


class DistillationModel(torch.nn.Module):
    """A student and its loss as one module.

    The teacher is frozen and on the student's device, None where its predictions come with the data. They are for the
    first tokens of the ``vocabulary``: what a head has beyond them is padding, which the student is to give no
    probability. ``layers`` are the teacher's behind the student's, for ``align`` "layers". If ``compiled``, all but
    heads and loss go through torch.compile, which cannot see through the loss's chunks.
    """

    def __init__(
        self,
        gpt: Transformer,
        distill: DistillArgs,
        teacher: Transformer | None,
        vocabulary: int,
        layers: Sequence[int] = (),
        compiled: bool = False,
    ) -> None:
        super().__init__()
        self.gpt, self.distill, self.vocabulary = gpt, distill, vocabulary
        self._states_between = torch.compile(_states_between, dynamic=False) if compiled else _states_between
        # Each output of a student's layer, and what the layer behind the next one was given in the teacher.
        self._pairs: dict[int, int] = {}
        if distill.align == "layers" and teacher is not None:
            self._pairs = dict(enumerate((*layers[1:], teacher.config.n_layer), start=1))
        # In a tuple, out of torch's sight: what copies, shards or saves the trained module has no business with it.
        self._teacher = (teacher,)

    def forward(self, inputs_BT: torch.Tensor, targets_BT: torch.Tensor, *stored_BTK: torch.Tensor) -> torch.Tensor:
        """Summed loss in nats, fp32, as of ``TrainingModel``.

        Where there is no teacher, ``stored_BTK`` are tokens drawn from its distribution, or its likeliest ones and
        their log-probabilities, at the loss's temperature.
        """
        (teacher,), distill = self._teacher, self.distill
        targets_N = targets_BT.flatten()
        hidden_BTC, states = self._states_between(self.gpt, inputs_BT, tuple(self._pairs))
        hidden_NC = hidden_BTC.flatten(0, 1)
        if teacher is None:
            ids_NK, *logprobs_NK = (stored.flatten(0, 1) for stored in stored_BTK)
        else:
            with torch.no_grad():
                teacher_BTC, teacher_states = self._states_between(teacher, inputs_BT, tuple(self._pairs.values()))
                teacher_NC = teacher_BTC.flatten(0, 1)

        def chunk_loss(logits_NV: torch.Tensor, chunk: slice) -> torch.Tensor:
            if distill.alpha == 1:
                return _cross_entropy(logits_NV, targets_N[chunk])
            if teacher is None and logprobs_NK:
                soft_N = top_divergence(logits_NV, ids_NK[chunk], logprobs_NK[0][chunk], distill.temperature)
            elif teacher is None:
                soft_N = drawn_cross_entropy(logits_NV, ids_NK[chunk], distill.temperature)
            else:
                with torch.no_grad():
                    teacher_NU = head_logits(teacher, teacher_NC[chunk])[:, : self.vocabulary]
                soft_N = divergence(logits_NV, teacher_NU, distill.temperature)
            soft = _counted_sum(soft_N, targets_N[chunk])
            return distill.alpha * _cross_entropy(logits_NV, targets_N[chunk]) + (1 - distill.alpha) * soft

        loss = chunked_loss(self.gpt, hidden_NC, chunk_loss)
        if distill.align == "last":
            apart_N = 1 - F.cosine_similarity(hidden_NC.float(), teacher_NC.float(), dim=-1)
            loss = loss + distill.align_weight * _counted_sum(apart_N, targets_N)
        for ours, theirs in self._pairs.items():
            apart_N = relative_distance(states[ours].flatten(0, 1), teacher_states[theirs].flatten(0, 1))
            loss = loss + distill.align_weight * _counted_sum(apart_N, targets_N)
        return loss


def _states_between(
    gpt: Transformer, inputs_BT: torch.Tensor, keep: tuple[int, ...]
) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
    return gpt.states_between(inputs_BT, keep)


def relative_distance(states_NC: torch.Tensor, targets_NC: torch.Tensor) -> torch.Tensor:
    """|s - t|^2 / (|s|^2 + |t|^2) of each state and its target, (N,) in fp32: 0 where they are equal, 2 at most.

    The scale of a token's states does not count, and no token counts more than twice: those of a few tokens are
    hundreds of times as large as of others (Sun et al. 2024, arXiv 2402.17762). Unlike the cosine it sees their length,
    which the layers behind were trained to add to.
    """
    states_NC, targets_NC = states_NC.float(), targets_NC.float()
    size_N = states_NC.square().sum(dim=-1) + targets_NC.square().sum(dim=-1)
    return (states_NC - targets_NC).square().sum(dim=-1) / size_N.clamp(min=1e-20)


def divergence(logits_NV: torch.Tensor, teacher_NU: torch.Tensor, temperature: float) -> torch.Tensor:
    """temperature^2 * KL(teacher || student) in nats, shape (N,), both softened by the temperature.

    The teacher gives what the student has beyond its U tokens no probability.
    """
    logprobs_NU = F.log_softmax(logits_NV / temperature, dim=-1)[:, : teacher_NU.shape[1]]
    teacher_logprobs_NU = F.log_softmax(teacher_NU / temperature, dim=-1)
    return temperature**2 * (teacher_logprobs_NU.exp() * (teacher_logprobs_NU - logprobs_NU)).sum(dim=-1)


def drawn_cross_entropy(logits_NV: torch.Tensor, ids_NK: torch.Tensor, temperature: float) -> torch.Tensor:
    """temperature^2 times the student's mean loss in nats on K tokens drawn from the teacher, shape (N,).

    Its expectation over the draws is ``divergence`` and the entropy of the teacher, so the gradient's is that of the
    divergence (random sampling KD: Anshumann et al. 2025, arXiv 2503.16870).
    """
    logits_NV = logits_NV / temperature
    return temperature**2 * (logits_NV.logsumexp(dim=-1) - logits_NV.gather(1, ids_NK).mean(dim=-1))


def top_divergence(
    logits_NV: torch.Tensor, ids_NK: torch.Tensor, teacher_NK: torch.Tensor, temperature: float
) -> torch.Tensor:
    """As ``divergence``, with what the teacher thinks of its K likeliest tokens; all others count as one.

    That is the divergence itself for K = V, and at most it for fewer: unlike a teacher renormalised over K tokens, it
    asks for no more of them than the teacher gave. ``ids_NK`` has each token once, ``teacher_NK`` the teacher's
    log-probabilities of them at the temperature.
    """
    logits_NV = logits_NV / temperature
    log_total_N = logits_NV.logsumexp(dim=-1)
    logprobs_NK = logits_NV.gather(1, ids_NK) - log_total_N.unsqueeze(-1)
    probs_NK = teacher_NK.exp()
    loss_N = (probs_NK * (teacher_NK - logprobs_NK)).sum(dim=-1)
    if ids_NK.shape[1] < logits_NV.shape[1]:
        # The student's logarithm of the rest from the rest's own logits: 1 minus a sum near 1 has no digits left.
        log_rest_N = logits_NV.scatter(1, ids_NK, -torch.inf).logsumexp(dim=-1) - log_total_N
        rest_N = (1 - probs_NK.sum(dim=-1)).clamp(min=0)
        loss_N = loss_N + torch.special.xlogy(rest_N, rest_N) - rest_N * log_rest_N
    return temperature**2 * loss_N
