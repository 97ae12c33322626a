"""Mistral, Qwen2 and Qwen3: LLaMA with a sliding window, biases in q, k and v, or norms of q and k."""

from dataclasses import replace
from typing import Any

from inheritune_lit.checkpoint.architectures.llama import LLAMA
from inheritune_lit.checkpoint.litgpt_config import Config
from inheritune_lit.errors import UserError

_NOT_THEIRS = ("attention_bias", "mlp_bias")


def _mistral_to_lit(hf: dict[str, Any]) -> dict[str, Any]:
    fields = LLAMA.to_lit({**hf, "attention_bias": False, "mlp_bias": False})
    window = hf.get("sliding_window")
    # A window as long as the context changes nothing, and litgpt's masks are slow.
    return fields | {"sliding_window_size": window if window and window < fields["block_size"] else None}


def _mistral_to_hf(config: Config) -> dict[str, Any]:
    return _without(LLAMA.to_hf(config), _NOT_THEIRS) | {"sliding_window": config.sliding_window_size}


def _qwen_to_lit(hf: dict[str, Any]) -> dict[str, Any]:
    if hf.get("use_sliding_window"):
        raise UserError("config.json: use_sliding_window is True, which is not supported for this architecture")
    fields = LLAMA.to_lit({**hf, "attention_bias": False, "mlp_bias": False})
    if hf.get("model_type") == "qwen3":
        if hf.get("attention_bias"):
            raise UserError("config.json: attention_bias is True, which is not supported for qwen3")
        return fields | {"norm_qk": True}
    return fields | {"attn_bias": True}


def _qwen2_to_hf(config: Config) -> dict[str, Any]:
    return _without(LLAMA.to_hf(config), (*_NOT_THEIRS, "head_dim"))


def _qwen3_to_hf(config: Config) -> dict[str, Any]:
    return _without(LLAMA.to_hf(config), ("mlp_bias",))


def _without(entries: dict[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    return {key: value for key, value in entries.items() if key not in keys}


MISTRAL = replace(
    LLAMA,
    model_types=("mistral",),
    class_name="MistralForCausalLM",
    to_lit=_mistral_to_lit,
    to_hf=_mistral_to_hf,
    bias_switches={},
)
QWEN2 = replace(
    LLAMA,
    model_types=("qwen2",),
    class_name="Qwen2ForCausalLM",
    to_lit=_qwen_to_lit,
    to_hf=_qwen2_to_hf,
    bias_switches={},
    free_head_size=False,
    litgpt_prefixes=("qwen", "qwq"),
)
QWEN3 = replace(
    LLAMA,
    model_types=("qwen3",),
    class_name="Qwen3ForCausalLM",
    block={**LLAMA.block, "attn.norm_q": "self_attn.q_norm", "attn.norm_k": "self_attn.k_norm"},
    to_lit=_qwen_to_lit,
    to_hf=_qwen3_to_hf,
    bias_switches={},
    litgpt_prefixes=("qwen3",),
)
