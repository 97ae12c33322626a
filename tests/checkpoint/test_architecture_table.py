"""Which architecture a litgpt configuration is, for every model that litgpt knows, and what it is called."""

import re
from dataclasses import replace

import pytest
import torch
import transformers
from litgpt.config import configs

from inheritune_lit.checkpoint.architectures.base import hf_tensors, litgpt_name
from inheritune_lit.checkpoint.architectures.table import ARCHITECTURES, architecture_of_lit
from inheritune_lit.checkpoint.config import Config
from inheritune_lit.checkpoint.tensors import tensor_shapes
from inheritune_lit.errors import UserError

EXPECTED = {
    r"pythia|stablelm-(base|tuned)|stablecode": "gpt_neox",
    r"stablelm|stable-code": "stablelm",
    r"falcon": "falcon",
    r"Gemma-3": "gemma3_text",
    r"Gemma-2-": "gemma2",
    r"(Code)?Gemma": "gemma",
    r"phi-(1_5|2)": "phi",
    r"Phi-4-mini": "phi3",
    r"Mixtral": "mixtral",
    r"Qwen3-\d+B-A": "qwen3_moe",
    r"Qwen3": "qwen3",
    r"Qwen2\.5|QwQ": "qwen2",
    r"OLMo-2": "olmo2",
    r"OLMo": "olmo",
    # As litgpt runs them, these are a Mistral and a LLaMA: sliding windows in all layers, and no more.
    r"Phi-3-mini-4k|Mathstral": "mistral",
    r"": "llama",
}


def test_every_model_that_litgpt_knows():
    for settings in configs:
        config = Config(**settings)
        if config.name == "LLaMA-2-7B-32K":
            # Positions are condensed.
            with pytest.raises(UserError, match="LLaMA-2-7B-32K"):
                architecture_of_lit(config)
            continue
        expected = next(kind for pattern, kind in EXPECTED.items() if re.match(pattern, config.name))
        assert architecture_of_lit(config).model_type == expected, config.name


@pytest.mark.parametrize(
    "changes",
    [
        {"norm_class_name": "LayerNorm", "norm_qk": True},
        {"latent_attention": {"q_lora_rank": 2, "kv_lora_rank": 2, "qk_rope_head_dim": 2, "qk_nope_head_dim": 2}},
        {"rope_interleave": True},
        {"mlp_class_name": "GemmaMLP"},
        {"name": "Gemma-like"},
    ],
)
def test_what_no_architecture_can_say_is_refused(changes):
    config = Config.from_name("SmolLM2-135M")
    for key, value in changes.items():
        setattr(config, key, value)
    with pytest.raises(UserError, match="not a supported"):
        architecture_of_lit(config)


@pytest.mark.parametrize(
    "name",
    [
        *("Gemma-7b", "Gemma-2-27b", "Gemma-3-1b-it", "phi-2", "Phi-4-mini-instruct", "OLMo-7B-hf", "OLMo-2-1124-13B"),
        *("falcon-7b", "falcon-40b", "stablelm-3b-4e1t", "Mistral-7B-v0.3", "Qwen2.5-7B", "Qwen3-32B", "pythia-1b"),
    ],
)
def test_published_shapes_are_those_of_transformers(name):
    config = Config.from_name(name)
    lists = {key: value[:3] for key in ("sliding_window_indices", "rope_indices") if (value := getattr(config, key))}
    config = replace(config, n_layer=3, **lists)
    architecture = architecture_of_lit(config)
    shapes = tensor_shapes(config, tied=False)
    found = {
        hf: (sum(piece.rows for piece in pieces), *shapes[pieces[0].name][1:])
        for hf, pieces in hf_tensors(architecture, config, shapes).items()
    }
    hf_class = type(transformers.AutoConfig.for_model(architecture.model_type))
    hf_config = hf_class(**architecture.to_hf(config))
    with torch.device("meta"):
        model = getattr(transformers, architecture.class_name)(hf_config)
    assert found == {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize(
    ("model_type", "name", "expected"),
    [
        ("llama", "my-llama", "my-llama"),
        ("llama", "llama-on-Gemma-data", "llama"),
        ("llama", "falcon-7b-as-llama", "Falcon-7b-as-llama"),
        ("mistral", "phi-but-mistral", "mistral-phi-but-mistral"),
        ("gemma", "gemma-2b", "Gemma-1-gemma-2b"),
        ("gemma", "gemma-7b", "Gemma-7b"),
        ("gemma2", "gemma-2-2b-it", "Gemma-2-2b-it"),
        ("gemma3_text", "tuned", "Gemma-3-tuned"),
        ("phi", "phi-2", "phi-2"),
        ("phi3", "phi-4", "phi-4"),
        ("qwen2", "Qwen2-0.5B", "Qwen2.5-Qwen2-0.5B"),
        ("olmo", "olmo-1b", "OLMo-olmo-1b"),
        ("olmo2", "OLMo-2-0425-1B", "OLMo-2-0425-1B"),
        ("falcon", "falcon-11B", "falcon-7b-falcon-11B"),
        ("gpt_neox", "OLMo-neox", "gpt_neox"),
    ],
)
def test_names_by_which_litgpt_chooses(model_type, name, expected):
    architecture = next(known for known in ARCHITECTURES if known.model_type == model_type)
    assert litgpt_name(architecture, name) == expected
    assert re.match(architecture.litgpt_names, expected)
