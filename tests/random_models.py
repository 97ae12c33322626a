"""Random transformers models whose every parameter shows in the logits, and fixtures that save them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers


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


@pytest.fixture
def make_neox(tmp_path: Path) -> Callable[..., tuple[torch.nn.Module, Path]]:
    """Build a random GPT-NeoX and save it: returns the model and its folder."""

    def make(name: str = "neox", **settings):
        torch.manual_seed(0)
        config = transformers.GPTNeoXConfig(
            **{
                "vocab_size": 97,
                "hidden_size": 32,
                "intermediate_size": 56,
                "num_hidden_layers": 4,
                "num_attention_heads": 4,
                "max_position_embeddings": 64,
                "initializer_range": 0.3,
                **settings,
            }
        )
        model = randomise(transformers.GPTNeoXForCausalLM(config).eval())
        model.save_pretrained(tmp_path / name)
        return model, tmp_path / name

    return make


@pytest.fixture
def make_gpt2(tmp_path: Path) -> Callable[..., tuple[torch.nn.Module, Path]]:
    """Build a random GPT-2 and save it: returns the model (eager attention) and its folder."""

    def make(name: str = "gpt2-tiny", **settings):
        torch.manual_seed(0)
        config = transformers.GPT2Config(
            **{
                "vocab_size": 97,
                "n_embd": 32,
                "n_inner": None,
                "n_layer": 4,
                "n_head": 4,
                "n_positions": 64,
                "initializer_range": 0.3,
                # transformers ignores scale_attn_by_inverse_layer_idx with its other attention functions.
                "attn_implementation": "eager",
                **settings,
            }
        )
        model = randomise(transformers.GPT2LMHeadModel(config).eval())
        model.save_pretrained(tmp_path / name)
        return model, tmp_path / name

    return make
