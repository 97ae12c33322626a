"""Which architecture a configuration belongs to."""

from typing import Any

from inheritune_lit.checkpoint.architectures.base import Architecture
from inheritune_lit.checkpoint.architectures.gpt2 import GPT2
from inheritune_lit.checkpoint.architectures.gpt_neox import GPT_NEOX
from inheritune_lit.checkpoint.architectures.llama import LLAMA
from inheritune_lit.checkpoint.architectures.llama_relatives import MISTRAL, QWEN2, QWEN3
from inheritune_lit.checkpoint.lit_config import GPT2Config
from inheritune_lit.checkpoint.litgpt_config import Config
from inheritune_lit.errors import UserError

ARCHITECTURES = (LLAMA, MISTRAL, QWEN2, QWEN3, GPT_NEOX, GPT2)


def architecture_of_hf(hf: dict[str, Any]) -> Architecture:
    """The architecture of a ``config.json``.

    Raises:
        UserError: it is none of the supported ones.
    """
    model_type = hf.get("model_type")
    for architecture in ARCHITECTURES:
        if model_type in architecture.model_types:
            return architecture
    known = ", ".join(name for architecture in ARCHITECTURES for name in architecture.model_types)
    raise UserError(f"config.json: model_type {model_type!r} is not supported (supported: {known})")


def architecture_of_lit(config: Config) -> Architecture:
    """The architecture of a litgpt model that comes without ``config.json``.

    Raises:
        UserError: none of the supported ones looks like this.
    """
    if config.norm_class_name == "RMSNorm" and config.mlp_class_name == "LLaMAMLP" and not config.scale_embeddings:
        if config.norm_qk:
            return QWEN3
        if config.sliding_window_size is not None:
            return MISTRAL
        return QWEN2 if config.attn_bias and not config.bias else LLAMA
    if isinstance(config, GPT2Config):
        return GPT2
    if config.norm_class_name == "LayerNorm" and config.mlp_class_name == "GptNeoxMLP" and config.bias:
        return GPT_NEOX
    raise UserError(f"model_config.yaml describes {config.name!r}, which is none of the supported architectures")
