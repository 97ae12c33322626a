"""Which architecture a configuration belongs to."""

from dataclasses import asdict
from typing import Any

from inheritune_lit.checkpoint.architectures.base import Architecture, litgpt_name
from inheritune_lit.checkpoint.architectures.gemma import GEMMA, GEMMA2, GEMMA3
from inheritune_lit.checkpoint.architectures.gpt import FALCON, FALCON_TWO_NORMS, GPT2, GPT_NEOX
from inheritune_lit.checkpoint.architectures.llama import LLAMA, MISTRAL, MIXTRAL, OLMO, OLMO2, QWEN2, QWEN3, QWEN3_MOE
from inheritune_lit.checkpoint.architectures.phi import PHI, PHI3, STABLELM
from inheritune_lit.checkpoint.config import Config, GPT2Config
from inheritune_lit.errors import UserError

_LLAMA_LIKE = (LLAMA, MISTRAL, MIXTRAL, QWEN2, QWEN3, QWEN3_MOE, PHI3, OLMO, OLMO2)
ARCHITECTURES = (*_LLAMA_LIKE, GEMMA, GEMMA2, GEMMA3, STABLELM, GPT_NEOX, FALCON, FALCON_TWO_NORMS, PHI, GPT2)
_WITHOUT_MEANING = ("name", "hf_config", "vocab_size", "padding_multiple", "padded_vocab_size", "rotary_percentage")


def architecture_of_hf(hf: dict[str, Any]) -> Architecture:
    """The architecture of a ``config.json``.

    Raises:
        UserError: it is not a supported one.
    """
    model_type = hf.get("model_type")
    for architecture in ARCHITECTURES:
        if architecture.model_type == model_type and architecture.describes(hf):
            return architecture
    known = ", ".join(dict.fromkeys(architecture.model_type for architecture in ARCHITECTURES))
    raise UserError(f"config.json: model_type {model_type!r} is not supported (supported: {known})")


def architecture_of_lit(config: Config) -> Architecture:
    """The architecture of a litgpt model that comes without ``config.json``.

    It is the first one whose ``config.json`` can say all of the configuration: a Mistral without a window is a LLaMA.

    Raises:
        UserError: none of the supported ones can.
    """
    if isinstance(config, GPT2Config):
        return GPT2
    for architecture in ARCHITECTURES:
        if architecture is not GPT2 and _can_say(architecture, config):
            return architecture
    raise UserError(f"model_config.yaml describes {config.name!r}, which is not a supported architecture")


def _can_say(architecture: Architecture, config: Config) -> bool:
    hf = architecture.to_hf(config)
    if not architecture.describes(hf):
        return False
    try:
        again = Config(
            name=litgpt_name(architecture, config.name),
            padded_vocab_size=config.padded_vocab_size,
            **architecture.to_lit(hf),
        )
    except (UserError, AssertionError, ValueError, TypeError):
        return False
    return _meaning(again) == _meaning(config)


def _meaning(config: Config) -> dict[str, Any]:
    """What of a configuration changes the model's results."""
    windowed = config.sliding_window_size is not None and config.sliding_window_size < config.block_size
    uses_gelu = config.mlp_class_name in ("GptNeoxMLP", "GemmaMLP")
    has_experts = config.mlp_class_name == "LLaMAMoE"
    norm = config.norm_class_name
    return {key: value for key, value in asdict(config).items() if key not in _WITHOUT_MEANING} | {
        # litgpt chooses these two by the model's name.
        "norm_adds_one": norm == "RMSNorm" and "Gemma" in config.name,
        "norm_has_weight": not (norm == "LayerNorm" and "OLMo" in config.name),
        "rope_n_elem": config.rope_n_elem,
        "attn_bias": config.bias or config.attn_bias,
        "attention_scores_scalar": config.attention_scores_scalar or config.head_size,
        "sliding_window_size": config.sliding_window_size if windowed else None,
        "sliding_window_indices": config.sliding_window_indices[: config.n_layer] if windowed else None,
        "rope_indices": config.rope_indices[: config.n_layer] if config.rope_local_base_freq is not None else None,
        "gelu_approximate": config.gelu_approximate if uses_gelu else None,
        "n_expert": config.n_expert if has_experts else 0,
        "n_expert_per_token": config.n_expert_per_token if has_experts else 0,
        "norm_topk_prob": config.norm_topk_prob and config.n_expert_groups is not None,
    }
