"""Gemma 1, 2 and 3 (text): norms that add one to their weight, scaled embeddings, gated tanh-GELU MLP.

Gemma 2 adds norms behind attention and MLP, soft-capped logits and a sliding window in every other layer. Gemma 3 has
norms of q and k instead of soft-capping, and its windowed layers have rotary positions of their own base.
"""

from dataclasses import replace
from functools import partial
from typing import Any

from inheritune_lit.checkpoint.architectures.base import Entry, gelu, like, optional, rope_from_hf, rope_to_hf, window
from inheritune_lit.checkpoint.architectures.llama import POST_NORMS, QK_NORMS, WITHOUT_BIAS
from inheritune_lit.checkpoint.config import Config, require
from inheritune_lit.errors import UserError

_cap = partial(optional, kind=float)
_SLIDING, _FULL = "sliding_attention", "full_attention"
_NAMES = r"(?!.*falcon)(?!(?i:phi|qwen2\.5|qwq|qwen3|olmo-2-))"


def _sliding_layers(hf: dict[str, Any], depth: int) -> list[int]:
    """1 for every layer with a window, 0 for the others."""
    pattern = require(hf, "sliding_window_pattern")
    kinds = hf.get("layer_types") or [_SLIDING if (layer + 1) % pattern else _FULL for layer in range(depth)]
    if not isinstance(kinds, list) or len(kinds) != depth or not all(kind in (_SLIDING, _FULL) for kind in kinds):
        raise UserError(f"config.json: layer_types is {kinds!r:.80}, not a known kind for each of {depth} layers")
    return [int(kind == _SLIDING) for kind in kinds]


def _layered_fields(hf: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    sliding = _sliding_layers(hf, fields["n_layer"])
    return {"sliding_window_indices": sliding if fields["sliding_window_size"] else None}


def _layered_entries(config: Config, sliding: list[int] | None) -> dict[str, Any]:
    sliding = sliding or [0] * config.n_layer
    return {
        "query_pre_attn_scalar": config.attention_scores_scalar or config.head_size,
        "sliding_window": config.sliding_window_size or config.block_size,
        "layer_types": [_SLIDING if index else _FULL for index in sliding[: config.n_layer]],
    }


def _gemma3_fields(hf: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    rope = hf.get("rope_parameters") or {}
    # transformers 4 has the two bases beside each other, and a scaling for the layers without a window.
    full = {"rope_theta": hf["rope_theta"], "rope_scaling": hf.get("rope_scaling"), "rope_parameters": rope.get(_FULL)}
    local = {"rope_theta": hf["rope_local_base_freq"], "rope_parameters": rope.get(_SLIDING)}
    windowed = rope_from_hf(local)
    if "rope_adjustments" in windowed:
        raise UserError(f"config.json: the rope of {_SLIDING} layers is scaled, which is not supported")
    return {
        **_layered_fields(hf, fields),
        **rope_from_hf(full),
        "rope_local_base_freq": windowed["rope_base"],
        "rope_indices": _sliding_layers(hf, fields["n_layer"]),
    }


def _gemma3_entries(config: Config) -> dict[str, Any]:
    local = float(config.rope_local_base_freq or config.rope_base)
    rope = {_FULL: rope_to_hf(config)["rope_parameters"], _SLIDING: {"rope_theta": local, "rope_type": "default"}}
    entries = _layered_entries(config, config.rope_indices)
    return entries | {"rope_local_base_freq": local, "rope_parameters": rope}


GEMMA = like(
    WITHOUT_BIAS,
    model_type="gemma",
    class_name="GemmaForCausalLM",
    # Gemma 1 has the older entry for the activation, which the newer one overrides.
    without=["hidden_act"],
    entries={"gelu_approximate": replace(gelu("hidden_activation", tanh="gelu_pytorch_tanh"), also="hidden_act")},
    constants={"mlp_class_name": "GemmaMLP", "scale_embeddings": True},
    fixed={"attention_bias": False, "use_bidirectional_attention": False},
    defaults={"head_dim": 256, "hidden_act": "gelu_pytorch_tanh", "num_key_value_heads": 16},
    litgpt_names=_NAMES + "(?!Gemma-[23]).*Gemma",
    litgpt_name="Gemma-1",
    tied_by_default=True,
    norm_init="zeros",
)
GEMMA2 = like(
    GEMMA,
    model_type="gemma2",
    class_name="Gemma2ForCausalLM",
    block=POST_NORMS | {"norm_2": "pre_feedforward_layernorm"},
    entries={
        "attention_scores_scalar": Entry("query_pre_attn_scalar"),
        "sliding_window_size": Entry("sliding_window", window),
        "attention_logit_softcapping": Entry("attn_logit_softcapping", _cap),
        "final_logit_softcapping": Entry("final_logit_softcapping", _cap),
    },
    constants={"post_attention_norm": True, "post_mlp_norm": True},
    defaults={"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "sliding_window_pattern": 2}
    | {"query_pre_attn_scalar": 256, "sliding_window": 4096, "num_key_value_heads": 4},
    more_fields=_layered_fields,
    more_entries=lambda config: _layered_entries(config, config.sliding_window_indices),
    litgpt_names=_NAMES + "Gemma-2",
    litgpt_name="Gemma-2",
)
GEMMA3 = like(
    GEMMA2,
    model_type="gemma3_text",
    class_name="Gemma3ForCausalLM",
    block=QK_NORMS,
    constants={"norm_qk": True},
    defaults={"attn_logit_softcapping": None, "final_logit_softcapping": None, "sliding_window_pattern": 6}
    | {"rope_theta": 1e6, "rope_local_base_freq": 1e4},
    more_fields=_gemma3_fields,
    more_entries=_gemma3_entries,
    litgpt_names=_NAMES + "Gemma-3",
    litgpt_name="Gemma-3",
)
