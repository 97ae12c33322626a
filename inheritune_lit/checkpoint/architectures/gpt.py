"""GPT-2, GPT-NeoX, Falcon and Phi (1, 1.5, 2): LayerNorm and a plain MLP.

GPT-2 has learned positions, a tied head and matrices stored transposed (Conv1D). Falcon has attention and MLP side by
side behind one norm (7B, 11B) or one each (40B, 180B), and grouped q, k and v; Phi has them behind one norm.
"""

from typing import Any

from inheritune_lit.checkpoint.architectures.base import (
    GROUPED,
    SIZES,
    Architecture,
    Entry,
    Stored,
    flag,
    gelu,
    like,
    optional,
    real,
)
from inheritune_lit.checkpoint.architectures.llama import LLAMA
from inheritune_lit.checkpoint.config import Config, GPT2Config

_DENSE: dict[str, str] = {"mlp.fc": "mlp.dense_h_to_4h", "mlp.proj": "mlp.dense_4h_to_h"}
_PLAIN = {"norm_class_name": "LayerNorm", "mlp_class_name": "GptNeoxMLP"}

GPT_NEOX = Architecture(
    model_type="gpt_neox",
    class_name="GPTNeoXForCausalLM",
    layer_prefix="gpt_neox.layers.{}.",
    outer={
        "transformer.wte": "gpt_neox.embed_in",
        "transformer.ln_f": "gpt_neox.final_layer_norm",
        "lm_head": "embed_out",
    },
    block={
        "norm_1": "input_layernorm",
        "attn.qkv": Stored("attention.query_key_value", interleaved=True),
        "attn.proj": "attention.dense",
        "norm_2": "post_attention_layernorm",
        **_DENSE,
    },
    entries=SIZES
    | {
        "norm_eps": Entry("layer_norm_eps", real),
        "gelu_approximate": gelu("hidden_act"),
        "parallel_residual": Entry("use_parallel_residual", flag),
    },
    constants=_PLAIN | {"bias": True},
    defaults={"layer_norm_eps": 1e-5, "use_parallel_residual": True, "rotary_pct": 0.25},
    more_entries=lambda config: {"rotary_pct": config.rotary_percentage, "rotary_emb_base": float(config.rope_base)},
    partial_rope=True,
    litgpt_name="gpt_neox",
    bias_switches={"attn": ("attention_bias", True)},
    ignored=(".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq"),
)
GPT2 = Architecture(
    model_type="gpt2",
    class_name="GPT2LMHeadModel",
    layer_prefix="transformer.h.{}.",
    outer={name: name for name in ("transformer.wte", "transformer.wpe", "transformer.ln_f", "lm_head")},
    block={
        "norm_1": "ln_1",
        "attn.qkv": Stored("attn.c_attn", transposed=True),
        "attn.proj": Stored("attn.c_proj", transposed=True),
        "norm_2": "ln_2",
        "mlp.fc": Stored("mlp.c_fc", transposed=True),
        "mlp.proj": Stored("mlp.c_proj", transposed=True),
    },
    entries={name: Entry(name) for name in ("n_layer", "n_embd", "n_head")}
    | {
        "intermediate_size": Entry("n_inner", optional),
        "block_size": Entry("n_positions", also="n_ctx"),
        "norm_eps": Entry("layer_norm_epsilon", real),
        "gelu_approximate": gelu("activation_function"),
        "scale_attn_by_inverse_layer_idx": Entry("scale_attn_by_inverse_layer_idx", flag),
    },
    constants=_PLAIN | {"parallel_residual": False, "bias": True, "rotary_percentage": 0.0},
    fixed={"scale_attn_weights": True, "add_cross_attention": False},
    defaults={"layer_norm_epsilon": 1e-5},
    litgpt_name="gpt2",
    config_class=GPT2Config,
    ignored=(".attn.bias", ".attn.masked_bias"),
    tied_by_default=True,
    residual_modules=frozenset({"attn.proj", "mlp.proj"}),
)


def _has_two_norms(hf: dict[str, Any]) -> bool:
    return bool(hf.get("new_decoder_architecture")) and hf.get("num_ln_in_parallel_attn", 2) in (2, None)


def _falcon_fields(hf: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    groups = fields["n_query_groups"] if hf.get("new_decoder_architecture") else 1 if hf["multi_query"] else None
    return {"n_query_groups": groups, "shared_attention_norm": not _has_two_norms(hf)}


def _falcon_entries(config: Config) -> dict[str, Any]:
    old = config.shared_attention_norm and config.n_query_groups in (1, config.n_head)
    return {
        "new_decoder_architecture": not old,
        "multi_query": old and config.n_query_groups == 1,
        "num_ln_in_parallel_attn": None if old else 1 if config.shared_attention_norm else 2,
    }


FALCON = Architecture(
    model_type="falcon",
    class_name="FalconForCausalLM",
    layer_prefix="transformer.h.{}.",
    outer=LLAMA.outer | {"transformer.wte": "transformer.word_embeddings", "transformer.ln_f": "transformer.ln_f"},
    block={
        "norm_1": "input_layernorm",
        "attn.qkv": Stored("self_attention.query_key_value", interleaved=True),
        "attn.proj": "self_attention.dense",
        **_DENSE,
    },
    entries=SIZES
    | {
        "n_query_groups": Entry("num_kv_heads", optional),
        "intermediate_size": Entry("ffn_hidden_size", optional),
        "norm_eps": Entry("layer_norm_epsilon", real),
        "gelu_approximate": gelu("activation"),
        "bias": Entry("bias", flag),
    },
    constants=_PLAIN | {"parallel_residual": True},
    fixed={"alibi": False, "parallel_attn": True},
    defaults={"max_position_embeddings": 2048, "layer_norm_epsilon": 1e-5, "activation": "gelu", "multi_query": True},
    more_fields=_falcon_fields,
    more_entries=_falcon_entries,
    litgpt_names="(?!.*(Gemma|OLMo))(?=.*falcon).*7b",
    litgpt_name="falcon-7b",
    describes=lambda hf: not _has_two_norms(hf),
    ignored=LLAMA.ignored,
    tied_by_default=True,
)
FALCON_TWO_NORMS = like(
    FALCON,
    block={"norm_1": "ln_attn", "norm_2": "ln_mlp"},
    litgpt_names="(?!.*(Gemma|OLMo|7b))(?=.*falcon).*(40b|180B)",
    litgpt_name="falcon-40b",
    describes=_has_two_norms,
)
PHI = Architecture(
    model_type="phi",
    class_name="PhiForCausalLM",
    layer_prefix=LLAMA.layer_prefix,
    outer=LLAMA.outer | {"transformer.ln_f": "model.final_layernorm"},
    block={
        "norm_1": "input_layernorm",
        "attn.qkv": LLAMA.block["attn.qkv"],
        "attn.proj": "self_attn.dense",
        "mlp.fc": "mlp.fc1",
        "mlp.proj": "mlp.fc2",
    },
    entries=GROUPED | {"norm_eps": Entry("layer_norm_eps", real), "gelu_approximate": gelu("hidden_act")},
    constants=_PLAIN | {"parallel_residual": True, "shared_attention_norm": True, "bias": True, "lm_head_bias": True},
    fixed={"qk_layernorm": False},
    defaults={"layer_norm_eps": 1e-5, "hidden_act": "gelu_new", "partial_rotary_factor": 0.5},
    partial_rope=True,
    litgpt_names="(?!.*(falcon|Gemma|OLMo))(?i:phi)(?!-[34])",
    litgpt_name="phi",
    ignored=LLAMA.ignored,
)
