"""Forward passes that stop before the head, and the head where a token is scored."""

from collections.abc import Iterator

import torch
from litgpt.model import GPT, do_softcapping

from inheritune_lit.evaluation.attention import AttentionPlan

_LOGITS = {"cpu": 1 << 24, "cuda": 1 << 27}
"""Logits held at once: bounds the head's memory, whatever the vocabulary."""


def hidden_states(model: GPT, tokens_BT: torch.Tensor, positions_BT: torch.Tensor, plan: AttentionPlan) -> torch.Tensor:
    """What goes into the head, (B, T, C), as ``GPT.forward`` computes it.

    Args:
        model: litgpt's model or our GPT-2, after ``install_plans``.
        tokens_BT: token ids.
        positions_BT: position of each token in its own sequence.
        plan: what each token attends to.
    """
    config = model.config
    x_BTC = model.transformer.wte(tokens_BT)
    if config.scale_embeddings:
        x_BTC = x_BTC * torch.tensor(config.n_embd**0.5, dtype=x_BTC.dtype)
    if "wpe" in model.transformer:
        x_BTC = x_BTC + model.transformer.wpe(positions_BT)
    cos, sin = model.cos[positions_BT], model.sin[positions_BT]
    for layer, block in enumerate(model.transformer.h):
        if config.rope_indices is not None:
            table = config.rope_indices[layer]
            x_BTC = block(x_BTC, cos[..., table], sin[..., table], plan)
        else:
            x_BTC = block(x_BTC, cos, sin, plan)
    return model.transformer.ln_f(x_BTC)


def logits(model: GPT, hidden_NC: torch.Tensor) -> torch.Tensor:
    """Logits in fp32, (N, V)."""
    logits_NV = model.lm_head(hidden_NC)
    if model.config.final_logit_softcapping is not None:
        logits_NV = do_softcapping(logits_NV, model.config.final_logit_softcapping)
    return logits_NV.float()


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
        yield first, logits(model, hidden_NC[first : first + rows])
