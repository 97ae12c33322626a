"""Tiny random transformers models of the architectures beside LLaMA, GPT-NeoX and GPT-2."""

from copy import deepcopy
from pathlib import Path

import torch
import transformers
from random_models import randomise

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "pad_token_id": None,
}
_NEW_FALCON = {"new_decoder_architecture": True, "num_kv_heads": 2}
_EXPERTS = {"num_experts_per_tok": 2, "head_dim": 12}
_SLIDING, _FULL = "sliding_attention", "full_attention"
_TWO_BASES = {
    _FULL: {"rope_type": "linear", "factor": 8.0, "rope_theta": 5000.0},
    _SLIDING: {"rope_type": "default", "rope_theta": 100.0},
}
CASES: dict[str, tuple[str, dict]] = {
    "mistral": ("Mistral", {"sliding_window": None}),
    "mistral-window": ("Mistral", {"sliding_window": 5, "head_dim": 12}),
    "qwen2-tied": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"head_dim": 12}),
    "gemma": ("Gemma", {"head_dim": 12}),
    "gemma-untied-mqa": ("Gemma", {"head_dim": 8, "num_key_value_heads": 1, "tie_word_embeddings": False}),
    "gemma2": ("Gemma2", {"head_dim": 12, "sliding_window": 4, "query_pre_attn_scalar": 20}),
    "gemma2-long-window": ("Gemma2", {"head_dim": 12, "sliding_window": 64, "attn_logit_softcapping": None}),
    "gemma3": (
        "Gemma3Text",
        {"head_dim": 12, "sliding_window": 4, "num_hidden_layers": 7, "rope_parameters": _TWO_BASES},
    ),
    "gemma3-long-window": (
        "Gemma3Text",
        {"head_dim": 8, "sliding_window": 64, "tie_word_embeddings": False, "num_hidden_layers": 7},
    ),
    "phi": ("Phi", {}),
    "phi-tied-rope": ("Phi", {"tie_word_embeddings": True, "partial_rotary_factor": 0.25, "hidden_act": "gelu"}),
    "phi3": ("Phi3", {}),
    "phi3-window-partial": ("Phi3", {"sliding_window": 5, "partial_rotary_factor": 0.5, "tie_word_embeddings": True}),
    "olmo": ("Olmo", {}),
    "olmo-tied": ("Olmo", {"tie_word_embeddings": True, "num_key_value_heads": 1}),
    "olmo2": ("Olmo2", {}),
    "olmo2-tied": ("Olmo2", {"tie_word_embeddings": True, "num_key_value_heads": 4}),
    "falcon-7b": ("Falcon", {}),
    "falcon-40b": ("Falcon", {**_NEW_FALCON, "tie_word_embeddings": False}),
    "falcon-11b": ("Falcon", {**_NEW_FALCON, "num_ln_in_parallel_attn": 1, "ffn_hidden_size": 56, "bias": True}),
    "falcon-multi-head": ("Falcon", {"multi_query": False, "bias": True}),
    "mixtral": ("Mixtral", {**_EXPERTS, "num_local_experts": 3}),
    "mixtral-window": (
        "Mixtral",
        {**_EXPERTS, "num_local_experts": 4, "sliding_window": 6, "tie_word_embeddings": True},
    ),
    "qwen3-moe": ("Qwen3Moe", {**_EXPERTS, "num_experts": 3, "moe_intermediate_size": 20, "norm_topk_prob": True}),
    "stablelm": ("StableLm", {}),
    "stablelm-parallel": (
        "StableLm",
        {"use_parallel_residual": True, "use_qkv_bias": True, "tie_word_embeddings": True},
    ),
}


def build(case: str, seed: int = 0, **settings) -> torch.nn.Module:
    """The model of a case; ``settings`` override its configuration."""
    kind, special = CASES[case]
    torch.manual_seed(seed)
    # transformers writes into the dictionaries that it is given.
    config = getattr(transformers, f"{kind}Config")(**deepcopy({**SIZES, **special, **settings}))
    # Soft-capping is left out by other attention functions than the eager one.
    config._attn_implementation = "eager"
    model_class = getattr(transformers, f"{kind.removesuffix('Text')}ForCausalLM")
    return randomise(model_class(config).eval())


def needs_eager(case: str) -> bool:
    """Whether transformers computes the model rightly with eager attention only: others leave out soft-capping."""
    return case == "gemma2"


def blocks_of(model: torch.nn.Module) -> tuple[torch.nn.Module, str]:
    """The module that owns the blocks, and its attribute."""
    owner = model.get_submodule(model.base_model_prefix)
    return owner, "h" if hasattr(owner, "h") else "layers"


@torch.no_grad()
def logits_without_layers(model: torch.nn.Module, layers: list[int], tokens_BT: torch.Tensor) -> torch.Tensor:
    """Logits (B, T, V) of the model with these of its blocks, each as it was; the model is changed."""
    owner, attribute = blocks_of(model)
    kept = getattr(owner, attribute)
    setattr(owner, attribute, torch.nn.ModuleList(kept[layer] for layer in layers))
    model.config.num_hidden_layers = len(layers)
    if kinds := getattr(model.config, "layer_types", None):
        model.config.layer_types = [kinds[layer] for layer in layers]
    return model(tokens_BT, use_cache=False).logits


def save(case: str, folder: Path, **settings) -> torch.nn.Module:
    """Build a case's model and save it."""
    model = build(case, **settings)
    model.save_pretrained(folder)
    return model
