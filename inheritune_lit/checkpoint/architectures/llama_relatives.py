"""Mistral, Qwen2 and Qwen3: LLaMA with a sliding window, biases in q, k and v, or norms of q and k."""

from dataclasses import replace
from typing import Any

from inheritune_lit.checkpoint.architectures.llama import LLAMA
from inheritune_lit.checkpoint.architectures.sizes import window_from_hf
from inheritune_lit.checkpoint.hf_config import require_value
from inheritune_lit.checkpoint.litgpt_config import Config
from inheritune_lit.errors import UserError

_NOT_THEIRS = ("attention_bias", "mlp_bias")


def mistral_to_lit(hf: dict[str, Any]) -> dict[str, Any]:
    """Mistral's fields, for Mixtral too."""
    fields = LLAMA.to_lit({**hf, "attention_bias": False, "mlp_bias": False})
    return fields | {"sliding_window_size": window_from_hf(hf, fields["block_size"])}


def mistral_to_hf(config: Config) -> dict[str, Any]:
    """Mistral's entries, for Mixtral too."""
    return without(LLAMA.to_hf(config), _NOT_THEIRS) | {"sliding_window": config.sliding_window_size}


def qwen3_to_lit(hf: dict[str, Any]) -> dict[str, Any]:
    """Qwen3's fields, for Qwen3-MoE too."""
    require_value(hf, "attention_bias", False, default=False)
    return _qwen(hf) | {"norm_qk": True}


def qwen3_to_hf(config: Config) -> dict[str, Any]:
    """Qwen3's entries, for Qwen3-MoE too."""
    return without(LLAMA.to_hf(config), ("mlp_bias",))


def _qwen2_to_lit(hf: dict[str, Any]) -> dict[str, Any]:
    return _qwen(hf) | {"attn_bias": True}


def _qwen2_to_hf(config: Config) -> dict[str, Any]:
    return without(LLAMA.to_hf(config), (*_NOT_THEIRS, "head_dim"))


def _qwen(hf: dict[str, Any]) -> dict[str, Any]:
    if hf.get("use_sliding_window"):
        raise UserError("config.json: use_sliding_window is True, which is not supported for this architecture")
    return LLAMA.to_lit({**hf, "attention_bias": False, "mlp_bias": False})


def without(entries: dict[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    """The entries of other keys."""
    return {key: value for key, value in entries.items() if key not in keys}


MISTRAL = replace(
    LLAMA,
    model_type="mistral",
    class_name="MistralForCausalLM",
    to_lit=mistral_to_lit,
    to_hf=mistral_to_hf,
    litgpt_name="mistral",
    bias_switches={},
)
QWEN2 = replace(
    LLAMA,
    model_type="qwen2",
    class_name="Qwen2ForCausalLM",
    to_lit=_qwen2_to_lit,
    to_hf=_qwen2_to_hf,
    litgpt_names=r"(?!.*(falcon|Gemma))(?i:qwen2\.5|qwq)",
    litgpt_name="Qwen2.5",
    bias_switches={},
    free_head_size=False,
)
QWEN3 = replace(
    LLAMA,
    model_type="qwen3",
    class_name="Qwen3ForCausalLM",
    block={**LLAMA.block, "attn.norm_q": "self_attn.q_norm", "attn.norm_k": "self_attn.k_norm"},
    to_lit=qwen3_to_lit,
    to_hf=qwen3_to_hf,
    litgpt_names=r"(?!.*(falcon|Gemma))(?i:qwen3)",
    litgpt_name="Qwen3",
    bias_switches={},
)
