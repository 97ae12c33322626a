"""OLMo: norms without parameters; OLMo-2: norms behind attention and MLP, and of all of q and k."""

from dataclasses import replace
from typing import Any

from inheritune_lit.checkpoint.architectures.llama import LLAMA, without
from inheritune_lit.checkpoint.config import Config
from inheritune_lit.checkpoint.hf_config import require_value

_EPS = 1e-5
"""Of OLMo's norms: fixed in its code."""


def _olmo_to_lit(hf: dict[str, Any]) -> dict[str, Any]:
    require_value(hf, "attention_bias", False, default=False)
    require_value(hf, "clip_qkv", None, default=None)
    fields = LLAMA.to_lit({**hf, "mlp_bias": False, "rms_norm_eps": _EPS, "head_dim": None})
    return fields | {"norm_class_name": "LayerNorm"}


def _olmo_to_hf(config: Config) -> dict[str, Any]:
    return without(LLAMA.to_hf(config), ("head_dim", "mlp_bias", "rms_norm_eps")) | {"clip_qkv": None}


def _olmo2_to_lit(hf: dict[str, Any]) -> dict[str, Any]:
    require_value(hf, "attention_bias", False, default=False)
    fields = LLAMA.to_lit({"rms_norm_eps": 1e-5, **hf, "mlp_bias": False, "head_dim": None})
    return fields | {
        "norm_1": False,
        "norm_2": False,
        "post_attention_norm": True,
        "post_mlp_norm": True,
        "norm_qk": True,
        "norm_qk_type": "olmo2",
    }


def _olmo2_to_hf(config: Config) -> dict[str, Any]:
    return without(LLAMA.to_hf(config), ("head_dim", "mlp_bias"))


OLMO = replace(
    LLAMA,
    model_type="olmo",
    class_name="OlmoForCausalLM",
    to_lit=_olmo_to_lit,
    to_hf=_olmo_to_hf,
    litgpt_names=r"(?!.*(falcon|Gemma))(?!(?i:phi|qwen2\.5|qwq|qwen3|olmo-2-)).*OLMo",
    litgpt_name="OLMo",
    bias_switches={},
    free_head_size=False,
)
OLMO2 = replace(
    LLAMA,
    model_type="olmo2",
    class_name="Olmo2ForCausalLM",
    block={
        **{module: LLAMA.block[module] for module in LLAMA.block if module not in ("norm_1", "norm_2")},
        "attn.norm_q": "self_attn.q_norm",
        "attn.norm_k": "self_attn.k_norm",
        "post_attention_norm": "post_attention_layernorm",
        "post_mlp_norm": "post_feedforward_layernorm",
    },
    to_lit=_olmo2_to_lit,
    to_hf=_olmo2_to_hf,
    litgpt_names="(?!.*(falcon|Gemma))(?i:olmo-2-)",
    litgpt_name="OLMo-2-1124",
    bias_switches={},
    free_head_size=False,
)
