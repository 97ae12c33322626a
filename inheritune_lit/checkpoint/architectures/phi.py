"""Phi (1, 1.5, 2): one norm for attention and MLP side by side; Phi-3 and Phi-4: LLaMA with fused tensors."""

from dataclasses import replace
from typing import Any

from inheritune_lit.checkpoint.architectures.base import (
    Architecture,
    rope_from_hf,
    rope_to_hf,
    sizes_from_hf,
    sizes_to_hf,
    window_from_hf,
)
from inheritune_lit.checkpoint.architectures.llama import LLAMA, without
from inheritune_lit.checkpoint.architectures.sources import Half, Split
from inheritune_lit.checkpoint.config import Config, gelu_from_hf, gelu_to_hf, require_value


def _phi_to_lit(hf: dict[str, Any]) -> dict[str, Any]:
    require_value(hf, "qk_layernorm", False, default=False)
    return {
        **sizes_from_hf(hf),
        "norm_eps": hf.get("layer_norm_eps", 1e-5),
        "norm_class_name": "LayerNorm",
        "mlp_class_name": "GptNeoxMLP",
        "gelu_approximate": gelu_from_hf({"hidden_act": "gelu_new", **hf}, "hidden_act"),
        "parallel_residual": True,
        "shared_attention_norm": True,
        "bias": True,
        "lm_head_bias": True,
        **rope_from_hf(hf, default_fraction=0.5),
    }


def _phi_to_hf(config: Config) -> dict[str, Any]:
    return {
        **sizes_to_hf(config),
        "layer_norm_eps": config.norm_eps,
        "hidden_act": gelu_to_hf(config.gelu_approximate),
        "qk_layernorm": False,
        **rope_to_hf(config, partial=True),
    }


def _phi3_to_lit(hf: dict[str, Any]) -> dict[str, Any]:
    require_value(hf, "attention_bias", False, default=False)
    fields = LLAMA.to_lit({**hf, "attention_bias": False, "mlp_bias": False})
    return fields | {"sliding_window_size": window_from_hf(hf, fields["block_size"])}


def _phi3_to_hf(config: Config) -> dict[str, Any]:
    entries = without(LLAMA.to_hf(config), ("head_dim", "attention_bias", "mlp_bias"))
    return entries | rope_to_hf(config, partial=True) | {"sliding_window": config.sliding_window_size}


PHI = Architecture(
    model_type="phi",
    class_name="PhiForCausalLM",
    base_prefix="model.",
    layer_prefix="model.layers.{}.",
    outer={
        "transformer.wte": "model.embed_tokens",
        "transformer.ln_f": "model.final_layernorm",
        "lm_head": "lm_head",
    },
    block={
        "norm_1": "input_layernorm",
        "attn.qkv": Split("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "attn.proj": "self_attn.dense",
        "mlp.fc": "mlp.fc1",
        "mlp.proj": "mlp.fc2",
    },
    to_lit=_phi_to_lit,
    to_hf=_phi_to_hf,
    litgpt_names="(?!.*(falcon|Gemma|OLMo))(?i:phi)(?!-[34])",
    litgpt_name="phi",
    ignored=("rotary_emb.inv_freq",),
)
_GATE_UP = Half("mlp.gate_up_proj", upper="mlp.fc_1", lower="mlp.fc_2")
PHI3 = replace(
    LLAMA,
    model_type="phi3",
    class_name="Phi3ForCausalLM",
    block={**LLAMA.block, "attn.qkv": "self_attn.qkv_proj", "mlp.fc_1": _GATE_UP, "mlp.fc_2": _GATE_UP},
    to_lit=_phi3_to_lit,
    to_hf=_phi3_to_hf,
    litgpt_names="(?!.*(falcon|Gemma))(?i:phi-[34])",
    litgpt_name="Phi-3",
    bias_switches={},
    free_head_size=False,
)


def _to_lit(hf: dict[str, Any]) -> dict[str, Any]:
    # Its norms of q and k differ by head, litgpt's do not.
    require_value(hf, "qk_layernorm", False, default=False)
    parallel = bool(hf.get("use_parallel_residual"))
    eps = hf.get("layer_norm_eps", 1e-5)
    fields = LLAMA.to_lit({**hf, "attention_bias": False, "mlp_bias": False, "rms_norm_eps": eps, "head_dim": None})
    return {
        **fields,
        "norm_class_name": "LayerNorm",
        "parallel_residual": parallel,
        "shared_attention_norm": parallel,
        "attn_bias": bool(hf.get("use_qkv_bias")),
        **rope_from_hf(hf, default_fraction=0.25),
    }


def _to_hf(config: Config) -> dict[str, Any]:
    return {
        **sizes_to_hf(config),
        "layer_norm_eps": config.norm_eps,
        "hidden_act": "silu",
        "use_qkv_bias": config.attn_bias,
        "use_parallel_residual": config.parallel_residual,
        "qk_layernorm": False,
        **rope_to_hf(config, partial=True),
    }


STABLELM = replace(
    LLAMA,
    model_type="stablelm",
    class_name="StableLmForCausalLM",
    to_lit=_to_lit,
    to_hf=_to_hf,
    litgpt_name="stablelm",
    bias_switches={},
    free_head_size=False,
)
