"""Log-probabilities of target tokens, with the head computed only where a token is scored."""

from collections.abc import Iterator

import torch
from litgpt.model import GPT

from inheritune_lit.model.forward import head_logits

_LOGITS = {"cpu": 1 << 24, "cuda": 1 << 27}
"""Logits held at once: bounds the head's memory, whatever the vocabulary."""


def score_targets(
    model: GPT, hidden_NC: torch.Tensor, targets: torch.Tensor, owners: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability of target tokens, and whether each has the highest logit.

    Args:
        model: whose head to use; its log-softmax is in fp32.
        hidden_NC: hidden states of distinct positions.
        targets: (M,) tokens to score.
        owners: (M,) the position of each target, as an index into ``hidden_NC``, ascending.

    Returns:
        Log-probabilities (M,) in fp32 and flags (M,), on the CPU.
    """
    logprobs, greedy = [], []
    for first, logits_nV in _chunks(model, hidden_NC):
        low, high = torch.searchsorted(owners, torch.tensor([first, first + len(logits_nV)], device=owners.device))
        chosen, rows = targets[low:high], owners[low:high] - first
        normaliser_n = logits_nV.logsumexp(dim=1)
        logprobs.append((logits_nV[rows, chosen] - normaliser_n[rows]).cpu())
        greedy.append((logits_nV.argmax(dim=1)[rows] == chosen).cpu())
    return torch.cat(logprobs), torch.cat(greedy)


def _chunks(model: GPT, hidden_NC: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
    rows = max(1, _LOGITS.get(hidden_NC.device.type, 1 << 27) // model.config.padded_vocab_size)
    for first in range(0, len(hidden_NC), rows):
        yield first, head_logits(model, hidden_NC[first : first + rows])
