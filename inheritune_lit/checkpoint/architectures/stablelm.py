"""StableLM (3B-4E1T, Zephyr, 2-1.6B): LLaMA's block with LayerNorm and partly rotary positions."""

from dataclasses import replace
from typing import Any

from inheritune_lit.checkpoint.architectures.llama import LLAMA
from inheritune_lit.checkpoint.architectures.rope import rope_from_hf, rope_to_hf
from inheritune_lit.checkpoint.architectures.sizes import sizes_to_hf
from inheritune_lit.checkpoint.hf_config import require_value
from inheritune_lit.checkpoint.litgpt_config import Config


def _to_lit(hf: dict[str, Any]) -> dict[str, Any]:
    # Its norms of q and k differ by head, litgpt's don't.
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
