"""Grown checkpoints against transformers with the layers of two models put together."""

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from families import blocks_of, build, logits_without_layers
from random_models import build_llama

from inheritune_lit.checkpoint.config import load_config
from inheritune_lit.inherit.args import SliceArgs
from inheritune_lit.inherit.grown import write_grown
from inheritune_lit.inherit.reference import resolve
from inheritune_lit.inherit.slice import slice_model
from inheritune_lit.io.manifest import read_manifest
from inheritune_lit.model.load import load_model, load_state
from inheritune_lit.studies.args import GrowArgs
from inheritune_lit.studies.rounds import plan_layers

TOKENS_BT = torch.arange(2 * 19).reshape(2, 19) * 5 % 97


def grown_logits(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        return load_model(folder)(TOKENS_BT)


def grow_by_two(folder: Path, reference: torch.nn.Module, trained: torch.nn.Module, start: int, new: str) -> Path:
    """Two layers of the saved reference behind the first ``start`` layers of another model of its shape."""
    reference.save_pretrained(folder / "reference")
    trained.save_pretrained(folder / "trained")
    slice_model(SliceArgs(str(folder / "trained"), n=start, out_dir=folder / "slice"))
    with resolve(str(folder / "reference")) as resolved:
        depth = resolved.reference.config.n_layer
        reference = resolved.open().reference
        second = plan_layers(GrowArgs("", "", "", n=start, new_layers=new), depth)[1]
        write_grown(folder / "grown", reference, folder / "slice", tuple(second.layers), second.added, "position")
    return folder / "grown"


def joined(trained: torch.nn.Module, reference: torch.nn.Module, layers: list[int], kept: int) -> torch.Tensor:
    """Logits of ``layers``, the first ``kept`` of them the trained model's."""
    model = deepcopy(trained)
    owner, attribute = blocks_of(model)
    theirs = getattr(*blocks_of(reference))
    for layer in layers[kept:]:
        getattr(owner, attribute)[layer] = theirs[layer]
    return logits_without_layers(model, layers, TOKENS_BT)


@pytest.mark.parametrize("case", ["qwen2-tied", "gemma3", "falcon-40b", "mixtral"])
@pytest.mark.parametrize(("new", "last"), [("next", [2, 3]), ("last:2", None)])
def test_grown_model_computes_what_transformers_does(case, new, last, tmp_path):
    reference, trained = build(case, seed=0), build(case, seed=1)
    depth = reference.config.num_hidden_layers
    grown = grow_by_two(tmp_path, reference, trained, 2, new)
    layers = [0, 1, *(last or [depth - 2, depth - 1])]
    expected = joined(trained, reference, layers, 2)
    torch.testing.assert_close(grown_logits(grown), expected, atol=2e-4, rtol=1e-4)
    assert load_config(grown).n_layer == 4
    assert read_manifest(grown)["layers"] == layers
    assert read_manifest(grown)["grown_layers"] == [2, 3]


def test_gpt2_with_scaled_attention(make_gpt2, tmp_path):
    reference, _ = make_gpt2(scale_attn_by_inverse_layer_idx=True)
    trained = deepcopy(reference)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.mul_(1.1)
    grown = grow_by_two(tmp_path, reference, trained, 2, "next")
    expected = joined(trained, reference, [0, 1, 2, 3], 2)
    torch.testing.assert_close(grown_logits(grown), expected, atol=2e-4, rtol=1e-4)


def test_new_layers_are_the_references_bytes_and_take_the_trained_dtype(tmp_path):
    reference, trained = build_llama(seed=0).to(torch.bfloat16), build_llama(seed=1)
    grown = load_state(grow_by_two(tmp_path, reference, trained, 2, "next"))
    whole = load_state(slice_model(SliceArgs(str(tmp_path / "reference"), n=5, out_dir=tmp_path / "whole")).folder)
    old = load_state(tmp_path / "slice")
    assert len(grown) == len(old) + sum(".h.2." in name or ".h.3." in name for name in whole)
    for name, tensor in grown.items():
        expected = whole[name].float() if ".h.2." in name or ".h.3." in name else old[name]
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, expected), name
