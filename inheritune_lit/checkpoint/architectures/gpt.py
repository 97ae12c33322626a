"""GPT-2, GPT-NeoX and Falcon: LayerNorm and a plain MLP.

GPT-2 has learned positions, a tied head and matrices stored transposed (Conv1D). Falcon has attention and MLP side by
side behind one norm (7B, 11B) or one each (40B, 180B), and grouped q, k and v.
"""

from dataclasses import replace
from typing import Any

from inheritune_lit.checkpoint.architectures.base import OTHERS, Architecture, rope_from_hf, rope_to_hf
from inheritune_lit.checkpoint.architectures.sources import Interleaved, Transposed
from inheritune_lit.checkpoint.config import Config, GPT2Config, gelu_from_hf, gelu_to_hf, require, require_value


def _gpt2_to_lit(hf: dict[str, Any]) -> dict[str, Any]:
    require_value(hf, "scale_attn_weights", True, default=True)
    require_value(hf, "add_cross_attention", False, default=False)
    return {
        "n_layer": require(hf, "n_layer"),
        "n_embd": require(hf, "n_embd"),
        "n_head": require(hf, "n_head"),
        "intermediate_size": hf.get("n_inner") or 4 * require(hf, "n_embd"),
        "block_size": require(hf, "n_positions"),
        "norm_eps": hf.get("layer_norm_epsilon", 1e-5),
        "norm_class_name": "LayerNorm",
        "mlp_class_name": "GptNeoxMLP",
        "gelu_approximate": gelu_from_hf(hf, "activation_function"),
        "parallel_residual": False,
        "bias": True,
        "rotary_percentage": 0.0,
        "scale_attn_by_inverse_layer_idx": bool(hf.get("scale_attn_by_inverse_layer_idx")),
    }


def _gpt2_to_hf(config: Config) -> dict[str, Any]:
    return {
        "n_layer": config.n_layer,
        "n_embd": config.n_embd,
        "n_head": config.n_head,
        "n_inner": config.intermediate_size,
        "n_positions": config.block_size,
        "n_ctx": config.block_size,
        "layer_norm_epsilon": config.norm_eps,
        "activation_function": gelu_to_hf(config.gelu_approximate),
        "scale_attn_by_inverse_layer_idx": config.scale_attn_by_inverse_layer_idx,
    }


GPT2 = Architecture(
    model_type="gpt2",
    class_name="GPT2LMHeadModel",
    base_prefix="transformer.",
    layer_prefix="transformer.h.{}.",
    outer={
        "transformer.wte": "transformer.wte",
        "transformer.wpe": "transformer.wpe",
        "transformer.ln_f": "transformer.ln_f",
        "lm_head": "lm_head",
    },
    block={
        "norm_1": "ln_1",
        "attn.qkv": Transposed("attn.c_attn"),
        "attn.proj": Transposed("attn.c_proj"),
        "norm_2": "ln_2",
        "mlp.fc": Transposed("mlp.c_fc"),
        "mlp.proj": Transposed("mlp.c_proj"),
    },
    to_lit=_gpt2_to_lit,
    to_hf=_gpt2_to_hf,
    litgpt_names=OTHERS,
    litgpt_name="gpt2",
    config_class=GPT2Config,
    ignored=(".attn.bias", ".attn.masked_bias"),
    tied_by_default=True,
    residual_modules=frozenset({"attn.proj", "mlp.proj"}),
)


def _neox_to_lit(hf: dict[str, Any]) -> dict[str, Any]:
    return {
        "n_layer": require(hf, "num_hidden_layers"),
        "n_embd": require(hf, "hidden_size"),
        "n_head": require(hf, "num_attention_heads"),
        "intermediate_size": require(hf, "intermediate_size"),
        "block_size": require(hf, "max_position_embeddings"),
        "norm_eps": hf.get("layer_norm_eps", 1e-5),
        "norm_class_name": "LayerNorm",
        "mlp_class_name": "GptNeoxMLP",
        "gelu_approximate": gelu_from_hf(hf, "hidden_act"),
        "parallel_residual": bool(hf.get("use_parallel_residual", True)),
        "bias": True,
        **rope_from_hf(hf, default_fraction=0.25),
    }


def _neox_to_hf(config: Config) -> dict[str, Any]:
    return {
        "num_hidden_layers": config.n_layer,
        "hidden_size": config.n_embd,
        "num_attention_heads": config.n_head,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.block_size,
        "layer_norm_eps": config.norm_eps,
        "hidden_act": gelu_to_hf(config.gelu_approximate),
        "use_parallel_residual": config.parallel_residual,
        "attention_bias": True,
        "rotary_pct": config.rotary_percentage,
        "rotary_emb_base": float(config.rope_base),
        **rope_to_hf(config, partial=True),
    }


GPT_NEOX = Architecture(
    model_type="gpt_neox",
    class_name="GPTNeoXForCausalLM",
    base_prefix="gpt_neox.",
    layer_prefix="gpt_neox.layers.{}.",
    outer={
        "transformer.wte": "gpt_neox.embed_in",
        "transformer.ln_f": "gpt_neox.final_layer_norm",
        "lm_head": "embed_out",
    },
    block={
        "norm_1": "input_layernorm",
        "attn.qkv": Interleaved("attention.query_key_value"),
        "attn.proj": "attention.dense",
        "norm_2": "post_attention_layernorm",
        "mlp.fc": "mlp.dense_h_to_4h",
        "mlp.proj": "mlp.dense_4h_to_h",
    },
    to_lit=_neox_to_lit,
    to_hf=_neox_to_hf,
    litgpt_names=OTHERS,
    litgpt_name="gpt_neox",
    bias_switches={"attn.qkv": ("attention_bias", True), "attn.proj": ("attention_bias", True)},
    ignored=(".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq"),
)


def _has_two_norms(hf: dict[str, Any]) -> bool:
    return bool(hf.get("new_decoder_architecture")) and hf.get("num_ln_in_parallel_attn", 2) in (2, None)


def _falcon_to_lit(hf: dict[str, Any]) -> dict[str, Any]:
    require_value(hf, "alibi", False, default=False)
    require_value(hf, "parallel_attn", True, default=True)
    n_head = require(hf, "num_attention_heads")
    groups = n_head
    if hf.get("new_decoder_architecture"):
        groups = hf.get("num_kv_heads") or n_head
    elif hf.get("multi_query", True):
        groups = 1
    return {
        "n_layer": require(hf, "num_hidden_layers"),
        "n_embd": require(hf, "hidden_size"),
        "n_head": n_head,
        "n_query_groups": groups,
        "intermediate_size": hf.get("ffn_hidden_size") or 4 * require(hf, "hidden_size"),
        "block_size": require({"max_position_embeddings": 2048, **hf}, "max_position_embeddings"),
        "norm_eps": hf.get("layer_norm_epsilon", 1e-5),
        "norm_class_name": "LayerNorm",
        "mlp_class_name": "GptNeoxMLP",
        "gelu_approximate": gelu_from_hf({"activation": "gelu", **hf}, "activation"),
        "parallel_residual": True,
        "shared_attention_norm": not _has_two_norms(hf),
        "bias": bool(hf.get("bias")),
        **rope_from_hf(hf),
    }


def _falcon_to_hf(config: Config) -> dict[str, Any]:
    one_norm = config.shared_attention_norm
    old = one_norm and config.n_query_groups in (1, config.n_head)
    return {
        "num_hidden_layers": config.n_layer,
        "hidden_size": config.n_embd,
        "num_attention_heads": config.n_head,
        "num_kv_heads": config.n_query_groups,
        "ffn_hidden_size": config.intermediate_size,
        "max_position_embeddings": config.block_size,
        "layer_norm_epsilon": config.norm_eps,
        "activation": gelu_to_hf(config.gelu_approximate),
        "alibi": False,
        "parallel_attn": True,
        "bias": config.bias,
        "new_decoder_architecture": not old,
        "multi_query": old and config.n_query_groups == 1,
        "num_ln_in_parallel_attn": None if old else 1 if one_norm else 2,
        **rope_to_hf(config),
    }


FALCON = Architecture(
    model_type="falcon",
    class_name="FalconForCausalLM",
    base_prefix="transformer.",
    layer_prefix="transformer.h.{}.",
    outer={
        "transformer.wte": "transformer.word_embeddings",
        "transformer.ln_f": "transformer.ln_f",
        "lm_head": "lm_head",
    },
    block={
        "norm_1": "input_layernorm",
        "attn.qkv": Interleaved("self_attention.query_key_value"),
        "attn.proj": "self_attention.dense",
        "mlp.fc": "mlp.dense_h_to_4h",
        "mlp.proj": "mlp.dense_4h_to_h",
    },
    to_lit=_falcon_to_lit,
    to_hf=_falcon_to_hf,
    litgpt_names="(?!.*(Gemma|OLMo))(?=.*falcon).*7b",
    litgpt_name="falcon-7b",
    describes=lambda hf: not _has_two_norms(hf),
    ignored=("rotary_emb.inv_freq",),
    tied_by_default=True,
)
FALCON_TWO_NORMS = replace(
    FALCON,
    block={**FALCON.block, "norm_1": "ln_attn", "norm_2": "ln_mlp"},
    litgpt_names="(?!.*(Gemma|OLMo|7b))(?=.*falcon).*(40b|180B)",
    litgpt_name="falcon-40b",
    describes=_has_two_norms,
)
