"""Shapes from the configuration against the models themselves, and what a slice must not import."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from litgpt.config import configs

from inheritune_lit.checkpoint.config import Config, GPT2Config
from inheritune_lit.checkpoint.tensors import HEAD, tensor_shapes
from inheritune_lit.model.gpt import build_model

NAMES = sorted({config["name"] for config in configs if not config.get("latent_attention")})


def expect_same(config: Config) -> None:
    with torch.device("meta"):
        state = build_model(config).state_dict()
    expected = {name: tuple(tensor.shape) for name, tensor in state.items()}
    assert tensor_shapes(config, tied=False) == expected
    tied = tensor_shapes(config, tied=True)
    assert expected.items() - tied.items() == {(HEAD, expected[HEAD])}


@pytest.mark.parametrize("start", range(0, len(NAMES), 20))
def test_shapes_of_every_model_that_litgpt_knows(start: int) -> None:
    for name in NAMES[start : start + 20]:
        config = Config.from_name(name)
        expect_same(replace(config, n_layer=2, n_expert=min(config.n_expert, 8), n_expert_groups=None))


@pytest.mark.parametrize("norm_bias", [True, False])
def test_shapes_of_gpt2(norm_bias: bool) -> None:
    sizes = {"n_layer": 3, "n_head": 2, "n_embd": 8, "padded_vocab_size": 10, "block_size": 6, "rotary_percentage": 0.0}
    expect_same(GPT2Config(name="gpt2", norm_bias=norm_bias, bias=norm_bias, **sizes))


def test_slicing_imports_neither_litgpt_nor_lightning() -> None:
    code = (
        "import sys, inheritune_lit.inherit.slice, inheritune_lit.checkpoint.export\n"
        "heavy = {'litgpt', 'lightning', 'transformers', 'torchmetrics'} & sys.modules.keys()\n"
        "assert not heavy, heavy\n"
        "import litgpt\n"
        "from inheritune_lit.checkpoint.config import Config\n"
        "assert litgpt.Config is Config\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
