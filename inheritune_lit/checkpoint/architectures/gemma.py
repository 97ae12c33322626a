"""Gemma 1, 2 and 3 (text): norms that add one to their weight, scaled embeddings, gated tanh-GELU MLP.

Gemma 2 adds norms behind attention and MLP, soft-capped logits and a sliding window in every other layer. Gemma 3 has
norms of q and k instead of soft-capping, and its windowed layers have rotary positions of their own base.
"""

from dataclasses import replace
from typing import Any

from inheritune_lit.checkpoint.architectures.base import (
    rope_from_hf,
    rope_to_hf,
    sizes_from_hf,
    sizes_to_hf,
    window_from_hf,
)
from inheritune_lit.checkpoint.architectures.llama import LLAMA
from inheritune_lit.checkpoint.config import Config, gelu_from_hf, require, require_value
from inheritune_lit.errors import UserError

_SLIDING, _FULL = "sliding_attention", "full_attention"
_NAMES = r"(?!.*falcon)(?!(?i:phi|qwen2\.5|qwq|qwen3|olmo-2-))"


def _fields(hf: dict[str, Any]) -> dict[str, Any]:
    require_value(hf, "attention_bias", False, default=False)
    if hf.get("use_bidirectional_attention"):
        raise UserError("config.json: use_bidirectional_attention is True; only causal models are supported")
    # Gemma 1 has the older entry, which the newer one overrides.
    activation = hf.get("hidden_activation") or hf.get("hidden_act") or "gelu_pytorch_tanh"
    return {
        **sizes_from_hf({"head_dim": 256, **hf}),
        "norm_eps": require(hf, "rms_norm_eps", float),
        "norm_class_name": "RMSNorm",
        "mlp_class_name": "GemmaMLP",
        "gelu_approximate": gelu_from_hf({"hidden_activation": activation}, "hidden_activation"),
        "parallel_residual": False,
        "bias": False,
        "scale_embeddings": True,
    }


def _entries(config: Config) -> dict[str, Any]:
    activation = "gelu_pytorch_tanh" if config.gelu_approximate == "tanh" else "gelu"
    return {
        **sizes_to_hf(config),
        "head_dim": config.head_size,
        "rms_norm_eps": config.norm_eps,
        "hidden_act": activation,
        "hidden_activation": activation,
        "attention_bias": False,
    }


def _gemma_to_lit(hf: dict[str, Any]) -> dict[str, Any]:
    return _fields(hf) | rope_from_hf(hf)


def _gemma_to_hf(config: Config) -> dict[str, Any]:
    return _entries(config) | rope_to_hf(config)


def _layered(hf: dict[str, Any], pattern: int) -> tuple[dict[str, Any], list[int]]:
    """Fields of Gemma 2 and 3 without the rotary ones, and 1 for every layer with a window."""
    fields = _fields(hf)
    depth = fields["n_layer"]
    default = [_SLIDING if (layer + 1) % pattern else _FULL for layer in range(depth)]
    kinds = hf.get("layer_types") or default
    if len(kinds) != depth or not set(kinds) <= {_SLIDING, _FULL}:
        raise UserError(f"config.json: layer_types is {kinds!r}, not a known kind for each of {depth} layers")
    sliding = [int(kind == _SLIDING) for kind in kinds]
    window = window_from_hf(hf, fields["block_size"])
    fields |= {
        "attention_scores_scalar": hf.get("query_pre_attn_scalar") or 256,
        "sliding_window_size": window,
        "sliding_window_indices": sliding if window else None,
        "post_attention_norm": True,
        "post_mlp_norm": True,
    }
    return fields, sliding


def _layered_to_hf(config: Config, sliding: list[int] | None) -> dict[str, Any]:
    sliding = sliding or [0] * config.n_layer
    return _entries(config) | {
        "query_pre_attn_scalar": config.attention_scores_scalar or config.head_size,
        "sliding_window": config.sliding_window_size or config.block_size,
        "layer_types": [_SLIDING if index else _FULL for index in sliding[: config.n_layer]],
        "attn_logit_softcapping": config.attention_logit_softcapping,
        "final_logit_softcapping": config.final_logit_softcapping,
    }


def _gemma2_to_lit(hf: dict[str, Any]) -> dict[str, Any]:
    softcapping = {
        "attention_logit_softcapping": hf.get("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": hf.get("final_logit_softcapping", 30.0),
    }
    return _layered(hf, pattern=2)[0] | rope_from_hf(hf) | softcapping


def _gemma2_to_hf(config: Config) -> dict[str, Any]:
    return _layered_to_hf(config, config.sliding_window_indices) | rope_to_hf(config)


def _gemma3_to_lit(hf: dict[str, Any]) -> dict[str, Any]:
    fields, sliding = _layered(hf, pattern=hf.get("sliding_window_pattern") or 6)
    softcapping = {
        "attention_logit_softcapping": hf.get("attn_logit_softcapping"),
        "final_logit_softcapping": hf.get("final_logit_softcapping"),
    }
    rope = hf.get("rope_parameters") or {}
    by_kind = {kind: value for kind in (_FULL, _SLIDING) if (value := rope.get(kind))}
    # transformers 4 has the two bases beside each other, and a scaling for the layers without a window.
    full = {"rope_theta": hf.get("rope_theta", 1e6), "rope_scaling": hf.get("rope_scaling")}
    local = {"rope_theta": hf.get("rope_local_base_freq", 1e4)}
    local |= {"rope_parameters": by_kind.get(_SLIDING)}
    windowed = rope_from_hf(local)
    if "rope_adjustments" in windowed:
        raise UserError(f"config.json: the rope of {_SLIDING} layers is scaled, which is not supported")
    return {
        **fields,
        **softcapping,
        **rope_from_hf(full | {"rope_parameters": by_kind.get(_FULL)}),
        "norm_qk": True,
        "rope_local_base_freq": windowed["rope_base"],
        "rope_indices": sliding,
    }


def _gemma3_to_hf(config: Config) -> dict[str, Any]:
    full = rope_to_hf(config)
    local = float(config.rope_local_base_freq or config.rope_base)
    rope = {
        "rope_local_base_freq": local,
        "rope_parameters": {
            _FULL: full["rope_parameters"],
            _SLIDING: {"rope_theta": local, "rope_type": "default"},
        },
    }
    return _layered_to_hf(config, config.rope_indices) | full | rope


GEMMA = replace(
    LLAMA,
    model_type="gemma",
    class_name="GemmaForCausalLM",
    to_lit=_gemma_to_lit,
    to_hf=_gemma_to_hf,
    litgpt_names=_NAMES + "(?!Gemma-[23]).*Gemma",
    litgpt_name="Gemma-1",
    bias_switches={},
    tied_by_default=True,
    norm_init="zeros",
)
GEMMA2 = replace(
    GEMMA,
    model_type="gemma2",
    class_name="Gemma2ForCausalLM",
    block={
        **LLAMA.block,
        "post_attention_norm": "post_attention_layernorm",
        "norm_2": "pre_feedforward_layernorm",
        "post_mlp_norm": "post_feedforward_layernorm",
    },
    to_lit=_gemma2_to_lit,
    to_hf=_gemma2_to_hf,
    litgpt_names=_NAMES + "Gemma-2",
    litgpt_name="Gemma-2",
)
GEMMA3 = replace(
    GEMMA2,
    model_type="gemma3_text",
    class_name="Gemma3ForCausalLM",
    block={**GEMMA2.block, "attn.norm_q": "self_attn.q_norm", "attn.norm_k": "self_attn.k_norm"},
    to_lit=_gemma3_to_lit,
    to_hf=_gemma3_to_hf,
    litgpt_names=_NAMES + "Gemma-3",
    litgpt_name="Gemma-3",
)
