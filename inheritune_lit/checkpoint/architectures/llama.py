"""LLaMA and its relatives: Mistral, Qwen, OLMo, and the mixtures of experts Mixtral and Qwen3-MoE.

LLaMA has RMSNorm, rotary positions and a gated SiLU MLP. OLMo's norms have no parameters; OLMo-2 has norms behind
attention and MLP, and of all of q and k. The mixtures have several MLPs per layer, of which a token takes a few.
"""

from dataclasses import replace
from typing import Any

from inheritune_lit.checkpoint.architectures.base import (
    OTHERS,
    Architecture,
    rope_from_hf,
    rope_to_hf,
    sizes_from_hf,
    sizes_to_hf,
    window_from_hf,
)
from inheritune_lit.checkpoint.architectures.sources import Source, Split, Stacked
from inheritune_lit.checkpoint.config import Config, require, require_value
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


_WITHOUT_BIAS = replace(LLAMA, bias_switches={})
_TIED_HEAD_SIZE = replace(_WITHOUT_BIAS, free_head_size=False)
MISTRAL = replace(
    _WITHOUT_BIAS,
    model_type="mistral",
    class_name="MistralForCausalLM",
    to_lit=mistral_to_lit,
    to_hf=mistral_to_hf,
    litgpt_name="mistral",
)
QWEN2 = replace(
    _TIED_HEAD_SIZE,
    model_type="qwen2",
    class_name="Qwen2ForCausalLM",
    to_lit=_qwen2_to_lit,
    to_hf=_qwen2_to_hf,
    litgpt_names=r"(?!.*(falcon|Gemma))(?i:qwen2\.5|qwq)",
    litgpt_name="Qwen2.5",
)
QWEN3 = replace(
    _WITHOUT_BIAS,
    model_type="qwen3",
    class_name="Qwen3ForCausalLM",
    block={**LLAMA.block, "attn.norm_q": "self_attn.q_norm", "attn.norm_k": "self_attn.k_norm"},
    to_lit=qwen3_to_lit,
    to_hf=qwen3_to_hf,
    litgpt_names=r"(?!.*(falcon|Gemma))(?i:qwen3)",
    litgpt_name="Qwen3",
)


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
    _TIED_HEAD_SIZE,
    model_type="olmo",
    class_name="OlmoForCausalLM",
    to_lit=_olmo_to_lit,
    to_hf=_olmo_to_hf,
    litgpt_names=r"(?!.*(falcon|Gemma))(?!(?i:phi|qwen2\.5|qwq|qwen3|olmo-2-)).*OLMo",
    litgpt_name="OLMo",
)
OLMO2 = replace(
    _TIED_HEAD_SIZE,
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
)


_STACKED: dict[str, Source | str] = {
    "mlp.gate": "mlp.gate",
    "mlp.experts.{}.fc_1": Stacked("mlp.experts.gate_up_proj", part=0, parts=2),
    "mlp.experts.{}.fc_2": Stacked("mlp.experts.gate_up_proj", part=1, parts=2),
    "mlp.experts.{}.proj": Stacked("mlp.experts.down_proj"),
}


def _mixtral_to_lit(hf: dict[str, Any]) -> dict[str, Any]:
    return mistral_to_lit({"rope_theta": 1e6, **hf}) | {
        "mlp_class_name": "LLaMAMoE",
        "n_expert": require(hf, "num_local_experts"),
        "n_expert_per_token": require(hf, "num_experts_per_tok"),
    }


def _mixtral_to_hf(config: Config) -> dict[str, Any]:
    return mistral_to_hf(config) | {
        "num_local_experts": config.n_expert,
        "num_experts_per_tok": config.n_expert_per_token,
    }


def _qwen3_moe_to_lit(hf: dict[str, Any]) -> dict[str, Any]:
    # litgpt's probabilities of the chosen experts add up to one.
    require_value(hf, "norm_topk_prob", True, default=False)
    if hf.get("mlp_only_layers") or hf.get("decoder_sparse_step", 1) != 1:
        raise UserError(
            f"config.json: mlp_only_layers is {hf.get('mlp_only_layers')} and decoder_sparse_step"
            f" {hf.get('decoder_sparse_step', 1)}: layers without experts are not supported for this architecture"
        )
    # transformers 5 renames the entry.
    experts = "num_experts" if "num_experts" in hf else "num_local_experts"
    return qwen3_to_lit(hf) | {
        "mlp_class_name": "LLaMAMoE",
        "n_expert": require(hf, experts),
        "n_expert_per_token": require(hf, "num_experts_per_tok"),
        "moe_intermediate_size": require(hf, "moe_intermediate_size"),
    }


def _qwen3_moe_to_hf(config: Config) -> dict[str, Any]:
    return qwen3_to_hf(config) | {
        "num_experts": config.n_expert,
        "num_local_experts": config.n_expert,
        "num_experts_per_tok": config.n_expert_per_token,
        "moe_intermediate_size": config.moe_intermediate_size,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }


def _with_experts(block: dict[str, Source | str], gate: str, w1: str, w2: str, w3: str) -> dict[str, Source | str]:
    attention = {module: source for module, source in block.items() if not module.startswith("mlp.")}
    return attention | {
        "mlp.gate": gate,
        "mlp.experts.{}.fc_1": w1,
        "mlp.experts.{}.proj": w2,
        "mlp.experts.{}.fc_2": w3,
    }


_MIXTRAL = "block_sparse_moe.experts.{}."
MIXTRAL = replace(
    _WITHOUT_BIAS,
    model_type="mixtral",
    class_name="MixtralForCausalLM",
    block=_with_experts(LLAMA.block, "block_sparse_moe.gate", _MIXTRAL + "w1", _MIXTRAL + "w2", _MIXTRAL + "w3"),
    to_lit=_mixtral_to_lit,
    to_hf=_mixtral_to_hf,
    litgpt_name="Mixtral",
    stacked=_STACKED,
)
_QWEN = "mlp.experts.{}."
QWEN3_MOE = replace(
    QWEN3,
    model_type="qwen3_moe",
    class_name="Qwen3MoeForCausalLM",
    block=_with_experts(QWEN3.block, "mlp.gate", _QWEN + "gate_proj", _QWEN + "down_proj", _QWEN + "up_proj"),
    to_lit=_qwen3_moe_to_lit,
    to_hf=_qwen3_moe_to_hf,
    stacked=_STACKED,
)
