"""Cost arithmetic: FLOPs, peaks of GPUs."""

from inheritune_lit.checkpoint.litgpt_config import Config

DENSE_BF16_FLOPS = {
    "A6000": 154.8e12,
    "RTX 3090": 71e12,
    "RTX 4090": 165.2e12,
    "L4": 121e12,
    "L40S": 362e12,
    "A10G": 70e12,
    "A100": 312e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "GH200": 989e12,
    "B200": 2250e12,
}
"""Peak of matrix products in bf16 with fp32 accumulation and without sparsity, FLOP/s, from the makers' data sheets."""


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


def peak_flops(device_name: str) -> float | None:
    """Peak of a GPU by the name that CUDA gives it, None where it is not in the table."""
    name = device_name.replace("-", " ").lower()
    matches = [known for known in DENSE_BF16_FLOPS if all(part in name for part in known.lower().split())]
    return DENSE_BF16_FLOPS[max(matches, key=len)] if matches else None
