"""GPT-NeoX (the Pythia models): LayerNorm, partial rotary positions, attention and MLP side by side."""

from typing import Any

from inheritune_lit.checkpoint.architectures.base import Architecture
from inheritune_lit.checkpoint.architectures.naming import OTHERS
from inheritune_lit.checkpoint.architectures.rope import rope_from_hf, rope_to_hf
from inheritune_lit.checkpoint.architectures.sources import Interleaved
from inheritune_lit.checkpoint.hf_config import gelu_from_hf, gelu_to_hf, require
from inheritune_lit.checkpoint.litgpt_config import Config


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
