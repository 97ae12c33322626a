"""Stacking, half width, sub-modules and switches: every inherited tensor byte-equal to its part of the reference."""

import json

import pytest
import torch
from safetensors.torch import load_file

from inheritune_lit.errors import UserError
from inheritune_lit.inherit.args import SliceArgs
from inheritune_lit.inherit.slice import slice_model
from inheritune_lit.io.manifest import read_manifest
from inheritune_lit.model.load import load_model, load_state


def layer_of(state: dict, layer: int) -> dict[str, torch.Tensor]:
    prefix = f"transformer.h.{layer}."
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def same(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_stack_repeats_all_layers(make_llama, tmp_path):
    _, ref = make_llama(num_hidden_layers=3)
    whole = load_state(slice_model(SliceArgs(str(ref), n=3, out_dir=tmp_path / "whole")).folder)
    out = slice_model(SliceArgs(str(ref), init="stack", n=6, out_dir=tmp_path / "out")).folder
    state = load_state(out)
    for layer in range(6):
        assert same(layer_of(state, layer), layer_of(whole, layer % 3))
    assert read_manifest(out)["layers"] == [0, 1, 2, 0, 1, 2]
    assert load_model(out).config.n_layer == 6


def test_hybrid_stack_repeats_the_first_half(make_llama, tmp_path):
    _, ref = make_llama(num_hidden_layers=5)
    whole = load_state(slice_model(SliceArgs(str(ref), n=5, out_dir=tmp_path / "whole")).folder)
    out = slice_model(SliceArgs(str(ref), init="hybrid-stack", n=4, out_dir=tmp_path / "out")).folder
    state = load_state(out)
    for layer in range(4):
        assert same(layer_of(state, layer), layer_of(whole, layer % 2))
    deep = slice_model(SliceArgs(str(ref), init="hybrid-stack", layers="last:3", n=9, out_dir=tmp_path / "deep")).folder
    assert read_manifest(deep)["layers"] == [2, 3, 4] * 3


@pytest.mark.parametrize(
    ("heads", "groups", "new_heads", "new_groups"), [(4, 4, 2, 2), (8, 4, 4, 2), (4, 1, 2, 1), (9, 3, 6, 2)]
)
def test_half_width_takes_leading_heads_of_every_matrix(make_llama, tmp_path, heads, groups, new_heads, new_groups):
    _, ref = make_llama(num_attention_heads=heads, num_key_value_heads=groups, head_dim=6, hidden_size=20)
    out = slice_model(SliceArgs(str(ref), init="half-width", out_dir=tmp_path / "out")).folder
    stored, state = load_file(ref / "model.safetensors"), load_state(out)
    q_rows, k_rows = new_heads * 6, new_groups * 6
    for layer in range(5):
        prefix = f"model.layers.{layer}."
        qkv = [stored[f"{prefix}self_attn.{part}_proj.weight"] for part in "qkv"]
        expected = {
            "norm_1.weight": stored[prefix + "input_layernorm.weight"][:10],
            "attn.qkv.weight": torch.cat((qkv[0][:q_rows, :10], qkv[1][:k_rows, :10], qkv[2][:k_rows, :10])),
            "attn.proj.weight": stored[prefix + "self_attn.o_proj.weight"][:10, :q_rows],
            "norm_2.weight": stored[prefix + "post_attention_layernorm.weight"][:10],
            "mlp.fc_1.weight": stored[prefix + "mlp.gate_proj.weight"][:28, :10],
            "mlp.fc_2.weight": stored[prefix + "mlp.up_proj.weight"][:28, :10],
            "mlp.proj.weight": stored[prefix + "mlp.down_proj.weight"][:10, :28],
        }
        assert same(layer_of(state, layer), expected)
    assert torch.equal(state["transformer.wte.weight"], stored["model.embed_tokens.weight"][:, :10])
    hf = json.loads((out / "config.json").read_text())
    assert (hf["hidden_size"], hf["num_attention_heads"], hf["num_key_value_heads"]) == (10, new_heads, new_groups)
    assert (hf["head_dim"], hf["intermediate_size"], hf["num_hidden_layers"]) == (6, 28, 5)
    assert load_model(out)(torch.tensor([[1, 2, 3]])).shape == (1, 3, 97)


def test_parts_and_switches(make_llama, tmp_path):
    _, ref = make_llama()
    whole = load_state(slice_model(SliceArgs(str(ref), n=2, out_dir=tmp_path / "whole")).folder)
    random = load_state(
        slice_model(SliceArgs(str(ref), n=2, init="random", seed=3, out_dir=tmp_path / "random")).folder
    )
    cases = {
        "attn": {"parts": "attn"},
        "mlp": {"parts": "mlp,norm"},
        "outside": {"embeddings": False, "head": False, "final_norm": False},
    }
    inherited = {
        "attn": lambda name: ".attn." in name or ".h." not in name,
        "mlp": lambda name: ".mlp." in name or ".norm_" in name or ".h." not in name,
        "outside": lambda name: ".h." in name,
    }
    for case, options in cases.items():
        state = load_state(slice_model(SliceArgs(str(ref), n=2, seed=3, out_dir=tmp_path / case, **options)).folder)
        for name, tensor in state.items():
            assert torch.equal(tensor, (whole if inherited[case](name) else random)[name]), (case, name)


def test_tied_head_cannot_be_switched_alone(make_llama, tmp_path):
    _, ref = make_llama(tie_word_embeddings=True)
    with pytest.raises(UserError, match="tied"):
        slice_model(SliceArgs(str(ref), n=1, head=False, out_dir=tmp_path / "out"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"init": "stack"}, "needs --n"),
        ({"init": "stack", "n": 7}, "not a multiple"),
        ({"init": "hybrid-stack", "n": 5}, "odd"),
        ({"init": "hybrid-stack", "n": 12}, "the reference has 5"),
    ],
)
def test_impossible_stacks(make_llama, tmp_path, options, message):
    _, ref = make_llama()
    with pytest.raises(UserError, match=message):
        slice_model(SliceArgs(str(ref), out_dir=tmp_path / "out", **options))


def test_command_line_options(make_llama, tmp_path, capsys):
    from inheritune_lit.cli import main

    _, ref = make_llama()
    arguments = ["slice", "--ref", str(ref), "--layers", "last:2", "--parts", "mlp", "--embeddings", "false"]
    assert main([*arguments, "--out_dir", str(tmp_path / "out")]) == 0
    record = read_manifest(tmp_path / "out")
    assert (record["layers"], record["parts"], record["embeddings"]) == ([3, 4], ["mlp"], False)
    assert main([*arguments[:-3], "mlp,heads", "--out_dir", str(tmp_path / "none")]) == 2
    assert "'heads' is not a part" in capsys.readouterr().err
