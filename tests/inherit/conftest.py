"""Tiny random references made by transformers."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

transformers = pytest.importorskip("transformers")


def build_llama(seed: int = 0, **settings) -> torch.nn.Module:
    """A random LLaMA; ``settings`` override the configuration. Biases and norms are random too."""
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        **{
            "vocab_size": 97,
            "hidden_size": 32,
            "intermediate_size": 56,
            "num_hidden_layers": 5,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 64,
            "initializer_range": 0.3,
            **settings,
        }
    )
    return randomise(transformers.LlamaForCausalLM(config).eval())


def randomise(model: torch.nn.Module) -> torch.nn.Module:
    """Give norms and biases values that would show if they were dropped."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "ln_" in name or name.endswith("bias"):
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


@pytest.fixture
def make_llama(tmp_path: Path) -> Callable[..., tuple[torch.nn.Module, Path]]:
    """Build a random LLaMA and save it: returns the model and its folder."""

    def make(name: str = "ref", shard_size: str = "1GB", dtype: torch.dtype = torch.float32, **settings):
        model = build_llama(**settings).to(dtype)
        model.save_pretrained(tmp_path / name, max_shard_size=shard_size)
        return model.float(), tmp_path / name

    return make
