"""Cost arithmetic: FLOPs, peaks of GPUs."""

from inheritune_lit.checkpoint.config import Config

LONGEST_BLOCK = 2048
"""Tokens a sample that is meant where none is given, at most: the paper's."""


def flops_per_token(config: Config, block_size: int) -> float:
    """Forward and backward FLOPs a token: 6 a matrix parameter (head included) and 6 * layers * width * T of causal
    attention."""
    qkv = (config.n_head + 2 * config.n_query_groups) * config.head_size * config.n_embd
    projection = config.n_head * config.head_size * config.n_embd
    mlp_matrices = 3 if config.mlp_class_name in ("LLaMAMLP", "GemmaMLP") else 2
    mlp = mlp_matrices * config.intermediate_size * config.n_embd
    head = config.padded_vocab_size * config.n_embd
    attention = config.n_layer * config.n_head * config.head_size * block_size
    return 6.0 * (config.n_layer * (qkv + projection + mlp) + head + attention)
