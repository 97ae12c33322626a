"""Mixtral and Qwen3-MoE: Mistral and Qwen3 with several MLPs a layer, of which a token takes a few."""

from dataclasses import replace
from typing import Any

from inheritune_lit.checkpoint.architectures.llama import (
    LLAMA,
    QWEN3,
    mistral_to_hf,
    mistral_to_lit,
    qwen3_to_hf,
    qwen3_to_lit,
)
from inheritune_lit.checkpoint.architectures.sources import Source, Stacked
from inheritune_lit.checkpoint.config import Config
from inheritune_lit.checkpoint.hf_config import require, require_value
from inheritune_lit.errors import UserError

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
    LLAMA,
    model_type="mixtral",
    class_name="MixtralForCausalLM",
    block=_with_experts(LLAMA.block, "block_sparse_moe.gate", _MIXTRAL + "w1", _MIXTRAL + "w2", _MIXTRAL + "w3"),
    to_lit=_mixtral_to_lit,
    to_hf=_mixtral_to_hf,
    litgpt_name="Mixtral",
    stacked=_STACKED,
    bias_switches={},
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
