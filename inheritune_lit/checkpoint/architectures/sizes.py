"""The entries of ``config.json`` that most architectures share, Hugging Face <-> litgpt."""

from typing import Any

from inheritune_lit.checkpoint.hf_config import require
from inheritune_lit.checkpoint.litgpt_config import Config


def sizes_from_hf(hf: dict[str, Any]) -> dict[str, Any]:
    """Depth, widths, heads and context as litgpt fields.

    Raises:
        UserError: one of them is missing or no positive number.
    """
    n_head = require(hf, "num_attention_heads")
    return {
        "n_layer": require(hf, "num_hidden_layers"),
        "n_embd": require(hf, "hidden_size"),
        "n_head": n_head,
        "n_query_groups": hf.get("num_key_value_heads") or n_head,
        "head_size": hf.get("head_dim") or require(hf, "hidden_size") // n_head,
        "intermediate_size": require(hf, "intermediate_size"),
        "block_size": require(hf, "max_position_embeddings"),
    }


def sizes_to_hf(config: Config) -> dict[str, Any]:
    """The entries for a litgpt ``Config``; ``head_dim`` is left to architectures that have it."""
    return {
        "num_hidden_layers": config.n_layer,
        "hidden_size": config.n_embd,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.n_query_groups,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.block_size,
    }


def window_from_hf(hf: dict[str, Any], block_size: int) -> int | None:
    """The sliding window, None where there is none.

    A window as long as the context changes nothing, and litgpt's masks are slow.
    """
    window = hf.get("sliding_window")
    return window if window and window < block_size else None
