"""Attention matrices to measure."""

import torch


def closed_forms(T: int = 100) -> dict[str, tuple[torch.Tensor, int, int]]:
    """Matrices whose rank and mass at tau = 0.9 and T = 100 follow from theory, with both."""
    sink = torch.zeros(T, T)
    sink[:, 0] = 1
    identity = torch.eye(T)
    previous = torch.zeros(T, T)
    previous[0, 0] = 1
    previous[torch.arange(1, T), torch.arange(T - 1)] = 1
    uniform = torch.ones(T, T).tril()
    return {
        "pure sink": (sink, 1, 1),
        "80/20 sink and self": (0.8 * sink + 0.2 * identity, 1, 1),
        "70/30 sink and self": (0.7 * sink + 0.3 * identity, 35, 36),
        "causal uniform": (uniform / uniform.sum(dim=-1, keepdim=True), 5, 30),
        "identity": (identity, 90, 90),
        "previous token": (previous, 89, 89),
    }


def random_attention(count: int, T: int, scale: float, seed: int = 0) -> torch.Tensor:
    """Causal attention of random logits, with a sink in every other matrix, (count, T, T)."""
    generator = torch.Generator().manual_seed(seed)
    logits_NTT = torch.randn(count, T, T, generator=generator) * scale
    logits_NTT[::2, :, 0] += 4
    return logits_NTT.masked_fill(~torch.ones(T, T, dtype=torch.bool).tril(), -torch.inf).softmax(dim=-1)
