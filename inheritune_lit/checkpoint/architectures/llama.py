"""LLaMA and its close relatives: RMSNorm, rotary positions, gated SiLU MLP."""

from typing import Any

from inheritune_lit.checkpoint.architectures.base import Architecture
from inheritune_lit.checkpoint.architectures.naming import OTHERS
from inheritune_lit.checkpoint.architectures.rope import rope_from_hf, rope_to_hf
from inheritune_lit.checkpoint.architectures.sizes import sizes_from_hf, sizes_to_hf
from inheritune_lit.checkpoint.architectures.sources import Split
from inheritune_lit.checkpoint.hf_config import require, require_value
from inheritune_lit.checkpoint.litgpt_config import Config


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
