"""GPT-2: learned positions, tied head, matrices stored transposed (Conv1D)."""

from typing import Any

from inheritune_lit.checkpoint.architectures.base import OTHERS, Architecture
from inheritune_lit.checkpoint.architectures.rope import rope_from_hf, rope_to_hf
from inheritune_lit.checkpoint.architectures.sources import Interleaved, Transposed
from inheritune_lit.checkpoint.config import Config, GPT2Config
from inheritune_lit.checkpoint.hf_config import gelu_from_hf, gelu_to_hf, require, require_value


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


def _to_lit(hf: dict[str, Any]) -> dict[str, Any]:
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


def _to_hf(config: Config) -> dict[str, Any]:
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
    to_lit=_to_lit,
    to_hf=_to_hf,
    litgpt_names=OTHERS,
    litgpt_name="gpt_neox",
    bias_switches={"attn.qkv": ("attention_bias", True), "attn.proj": ("attention_bias", True)},
    ignored=(".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq"),
)
