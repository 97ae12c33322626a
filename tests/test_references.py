"""The table of references against shapes computed from litgpt's registry and from GPT-2's published sizes."""

import pytest
import torch
from litgpt.config import configs

from inheritune_lit.checkpoint.config import Config, GPT2Config
from inheritune_lit.model.gpt import build_model
from inheritune_lit.references import REFERENCES, SHAPES, find_reference, reference_table, unknown_reference

TIED = ("smollm2", "llama3.2", "gpt2")
GPT2_HEADS = {"gpt2": 12, "gpt2-medium": 16, "gpt2-large": 20, "gpt2-xl": 25}


def config_of(reference) -> Config:
    if reference.name in GPT2_HEADS:
        return GPT2Config(
            block_size=1024,
            n_layer=reference.layers,
            n_embd=reference.width,
            n_head=GPT2_HEADS[reference.name],
            padded_vocab_size=50257,
            rotary_percentage=0.0,
            parallel_residual=False,
        )
    name = reference.repository.split("/")[1].removesuffix("_v2")
    return Config(**next(config for config in configs if config["hf_config"]["name"] == name))


@pytest.mark.parametrize("reference", REFERENCES, ids=lambda reference: reference.name)
def test_parameters_follow_from_the_shapes(reference):
    config = config_of(reference)
    with torch.device("meta"):
        model = build_model(config)
    total = sum(parameter.numel() for parameter in model.parameters())
    if reference.name.startswith(TIED):
        total -= model.lm_head.weight.numel()
    assert (config.n_layer, config.n_embd, total) == (reference.layers, reference.width, reference.parameters)


def test_table_and_look_up():
    lines = reference_table().splitlines()
    assert len(lines) == len(REFERENCES) + len(SHAPES) + 1
    assert len({reference.name for reference in REFERENCES}) == len(REFERENCES)
    assert "6,738,415,616" in next(line for line in lines if line.startswith("llama2-7b"))
    assert find_reference("GPT2-Medium").repository == "openai-community/gpt2-medium"
    assert find_reference("gpt3") is None
    assert "pythia-160m" in str(unknown_reference("pythia160m"))
