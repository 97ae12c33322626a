"""LLaMA and its close relatives: RMSNorm, rotary positions, gated SiLU MLP."""

from dataclasses import replace
from typing import Any

from inheritune_lit.checkpoint.architectures.base import (
    OTHERS,
    Architecture,
    sizes_from_hf,
    sizes_to_hf,
    window_from_hf,
)
from inheritune_lit.checkpoint.architectures.rope import rope_from_hf, rope_to_hf
from inheritune_lit.checkpoint.architectures.sources import Split
from inheritune_lit.checkpoint.config import Config
from inheritune_lit.checkpoint.hf_config import require, require_value
from inheritune_lit.errors import UserError


def _to_lit(hf: dict[str, Any]) -> dict[str, Any]:
    require_value(hf, "hidden_act", "silu", default="silu")
    attention_bias, mlp_bias = bool(hf.get("attention_bias")), bool(hf.get("mlp_bias"))
    return {
        **sizes_from_hf(hf),
        "norm_eps": require(hf, "rms_norm_eps", float),
        "norm_class_name": "RMSNorm",
        "mlp_class_name": "LLaMAMLP",
        "parallel_residual": False,
        # litgpt has one switch for all biases: those the reference lacks become zeros.
        "bias": attention_bias or mlp_bias,
        **rope_from_hf(hf),
    }


def _to_hf(config: Config) -> dict[str, Any]:
    return {
        **sizes_to_hf(config),
        "head_dim": config.head_size,
        "rms_norm_eps": config.norm_eps,
        "hidden_act": "silu",
        "attention_bias": config.bias,
        "mlp_bias": config.bias,
        **rope_to_hf(config),
    }


LLAMA = Architecture(
    model_type="llama",
    class_name="LlamaForCausalLM",
    base_prefix="model.",
    layer_prefix="model.layers.{}.",
    outer={
        "transformer.wte": "model.embed_tokens",
        "transformer.ln_f": "model.norm",
        "lm_head": "lm_head",
    },
    block={
        "norm_1": "input_layernorm",
        "attn.qkv": Split("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "attn.proj": "self_attn.o_proj",
        "norm_2": "post_attention_layernorm",
        "mlp.fc_1": "mlp.gate_proj",
        "mlp.fc_2": "mlp.up_proj",
        "mlp.proj": "mlp.down_proj",
    },
    to_lit=_to_lit,
    to_hf=_to_hf,
    litgpt_names=OTHERS,
    litgpt_name="llama",
    bias_switches={
        "attn.qkv": ("attention_bias", False),
        "attn.proj": ("attention_bias", False),
        "mlp.fc_1": ("mlp_bias", False),
        "mlp.fc_2": ("mlp_bias", False),
        "mlp.proj": ("mlp_bias", False),
    },
    free_head_size=True,
    ignored=("rotary_emb.inv_freq",),
)


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
