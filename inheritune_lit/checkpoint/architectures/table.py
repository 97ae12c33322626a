"""Which architecture a configuration belongs to."""

from dataclasses import asdict
from typing import Any

from inheritune_lit.checkpoint.architectures import gemma, gpt, llama
from inheritune_lit.checkpoint.architectures.base import Architecture, litgpt_name
from inheritune_lit.checkpoint.config import Config, GPT2Config
from inheritune_lit.errors import UserError

ARCHITECTURES = (
    *(llama.LLAMA, llama.MISTRAL, llama.MIXTRAL, llama.QWEN2, llama.QWEN3, llama.QWEN3_MOE, llama.PHI3),
    *(llama.OLMO, llama.OLMO2, gemma.GEMMA, gemma.GEMMA2, gemma.GEMMA3, llama.STABLELM),
    *(gpt.GPT_NEOX, gpt.FALCON, gpt.FALCON_TWO_NORMS, gpt.PHI, gpt.GPT2),
)
_WITHOUT_MEANING = ("name", "hf_config", "vocab_size", "padding_multiple", "padded_vocab_size", "rotary_percentage")


def architecture_of_hf(hf: dict[str, Any]) -> Architecture:
    """The architecture of a ``config.json``; one that is not supported is a ``UserError``."""
    model_type = hf.get("model_type")
    for architecture in ARCHITECTURES:
        if architecture.model_type == model_type and architecture.describes(hf):
            return architecture
    known = ", ".join(dict.fromkeys(architecture.model_type for architecture in ARCHITECTURES))
    raise UserError(f"config.json: model_type {model_type!r} is not supported (supported: {known})")


def architecture_of_lit(config: Config) -> Architecture:
    """The first architecture whose ``config.json`` can say all of the configuration; none is a ``UserError``."""
    if isinstance(config, GPT2Config):
        return gpt.GPT2
    for architecture in ARCHITECTURES[:-1]:
        if _can_say(architecture, config):
            return architecture
    raise UserError(f"model_config.yaml describes {config.name!r}, which is not a supported architecture")


def _can_say(architecture: Architecture, config: Config) -> bool:
    hf = architecture.to_hf(config)
    if not architecture.describes(hf):
        return False
    try:
        name, padded = litgpt_name(architecture, config.name), config.padded_vocab_size
        again = Config(name=name, padded_vocab_size=padded, **architecture.to_lit(hf))
    except (UserError, AssertionError, ValueError, TypeError):
        return False
    return _meaning(again) == _meaning(config)


def _meaning(config: Config) -> dict[str, Any]:
    """What of a configuration changes the model's results."""
    windowed = config.sliding_window_size is not None and config.sliding_window_size < config.block_size
    uses_gelu = config.mlp_class_name in ("GptNeoxMLP", "GemmaMLP")
    has_experts = config.mlp_class_name == "LLaMAMoE"
    return {key: value for key, value in asdict(config).items() if key not in _WITHOUT_MEANING} | {
        # litgpt chooses these two by the model's name.
        "norm_adds_one": config.norm_class_name == "RMSNorm" and "Gemma" in config.name,
        "norm_has_weight": not (config.norm_class_name == "LayerNorm" and "OLMo" in config.name),
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
