"""The loss of a student that learns from a teacher's predictions as well as from the text.

Paper, Appendix C.1: alpha * cross-entropy + (1 - alpha) * distillation loss. The latter is Hinton, Vinyals and Dean's
("Distilling the Knowledge in a Neural Network", 2015): temperature^2 times the divergence of the student's softened
distribution from the teacher's. DistilBERT (Sanh et al., 2019, Section 3) adds 1 - cosine of the last hidden states.
"""

import torch
from torch.nn import functional as F

from inheritune_lit.data.packed import PADDING
from inheritune_lit.model.forward import head_logits
from inheritune_lit.model.gpt import Transformer
from inheritune_lit.train.args import DistillArgs
from inheritune_lit.train.loss import chunked_loss


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
