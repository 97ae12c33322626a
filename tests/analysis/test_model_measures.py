"""Measures of whole models against transformers, against real slices and against autograd."""

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from inheritune_lit.analysis.analyze import analyze_model
from inheritune_lit.analysis.args import AnalyzeArgs
from inheritune_lit.analysis.measures import attention_mass, attention_rank, sink_mass
from inheritune_lit.analysis.result import Analysis, load_analysis
from inheritune_lit.inherit.args import SliceArgs
from inheritune_lit.inherit.load import load_reference
from inheritune_lit.inherit.slice import slice_model
from inheritune_lit.model.load import load_model

B, T = 6, 48
OPTIONS = {
    "num_sequences": B,
    "seq_length": T,
    "drop_sequences": 4,
    "map_layers": "0,2",
    "map_heads": [1],
}


def analyze(ref: Path, out_dir: Path, **options) -> Analysis:
    analysis = analyze_model(AnalyzeArgs(ref, "text", out_dir, **options)).analysis
    assert analysis is not None
    return analysis


@pytest.fixture
def tokens_BT1(monkeypatch) -> torch.Tensor:
    """Random sequences, given to the analysis in place of text."""
    tokens = torch.randint(0, 97, (B, T + 1), generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr("inheritune_lit.analysis.analyze.draw_sequences", lambda *args: tokens)
    return tokens


def families(make_llama, make_gpt2):
    return {
        "llama": lambda: make_llama(num_hidden_layers=4, attn_implementation="eager"),
        "gpt2": lambda: make_gpt2(),
        "gpt2, scaled by layer": lambda: make_gpt2(scale_attn_by_inverse_layer_idx=True),
    }


@pytest.fixture(params=["llama", "gpt2", "gpt2, scaled by layer"])
def model_and_folder(request, make_llama, make_gpt2) -> tuple[torch.nn.Module, Path]:
    return families(make_llama, make_gpt2)[request.param]()


def losses_of(logits_BTV: torch.Tensor, tokens_BT1: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits_BTV.transpose(1, 2), tokens_BT1[:, 1:], reduction="none").mean(dim=1)


def test_measures_against_transformers(model_and_folder, tokens_BT1, tmp_path):
    model, folder = model_and_folder
    result = analyze(folder, tmp_path / "out", **OPTIONS)
    with torch.no_grad():
        output = model(tokens_BT1[:, :-1], output_attentions=True, output_hidden_states=True)
    for layer, attention_BHTT in enumerate(output.attentions):
        attention_NTT = attention_BHTT.reshape(-1, T, T)
        for name, values_BH in {
            "attention_rank": attention_rank(attention_NTT, 0.9).view(B, -1).double(),
            "attention_mass": attention_mass(attention_NTT, 0.9).view(B, -1).double(),
            "sink_mass": sink_mass(attention_BHTT),
        }.items():
            np.testing.assert_allclose(result.heads[name].mean[layer], values_BH.mean(0), rtol=1e-5)
            np.testing.assert_allclose(result.heads[name].std[layer], values_BH.std(0), rtol=1e-4, atol=1e-6)
    # The last hidden state comes after the norm.
    states = output.hidden_states[:-1]
    for layer, (before_BTC, after_BTC) in enumerate(pairwise(states)):
        influence_B = 1 - F.cosine_similarity(before_BTC, after_BTC, dim=-1).mean(1)
        assert result.layers["block_influence"].mean[layer] == pytest.approx(influence_B.mean().item(), rel=1e-4)
        assert result.layers["block_influence"].std[layer] == pytest.approx(influence_B.std().item(), rel=1e-3)
        variance = np.mean([state.var() for state in after_BTC.numpy()])
        assert result.layers["output_variance"].mean[layer] == pytest.approx(variance, rel=1e-4)
        cosine_B = F.cosine_similarity(before_BTC[:, -1], after_BTC[:, -1], dim=-1)
        angle = np.mean([math.acos(cosine) / math.pi for cosine in cosine_B])
        assert result.layers["angular_distance"].mean[layer] == pytest.approx(angle, rel=1e-4)
    assert result.loss.mean == pytest.approx(losses_of(output.logits, tokens_BT1).mean().item(), rel=1e-5)
    assert load_analysis(tmp_path / "out") == result


def test_attention_maps_against_transformers(make_llama, tokens_BT1, tmp_path):
    model, folder = make_llama(num_hidden_layers=4, attn_implementation="eager")
    causal = {
        "num_sequences": B,
        "seq_length": T,
        "maps": "causal",
        "map_layers": "1",
        "drop_sequences": 0,
    }
    result = analyze(folder, tmp_path / "causal", **causal)
    with torch.no_grad():
        # Three strings of 40 tokens (paper, Figure 2).
        attention_BHTT = model(tokens_BT1[:3, :40], output_attentions=True).attentions[1]
    assert [(found.layer, found.head) for found in result.maps.attention] == [(1, head) for head in range(4)]
    found_HTT = np.array([found.weights for found in result.maps.attention])
    np.testing.assert_allclose(found_HTT, attention_BHTT.mean(dim=0), atol=2e-5)


def test_full_maps_are_causal_ones_where_the_mask_allows(make_llama, tokens_BT1, monkeypatch, tmp_path):
    """Of one sequence: what a row pays to earlier tokens, scaled to sum up to 1, is the row that the model computes."""
    model, folder = make_llama(num_hidden_layers=4, attn_implementation="eager")
    monkeypatch.setattr("inheritune_lit.analysis.analyze.draw_sequences", lambda *args: tokens_BT1[:1])
    one = {
        "num_sequences": 1,
        "seq_length": T,
        "map_layers": "1",
        "map_heads": [2],
        "drop_sequences": 0,
    }
    full_TT = np.array(analyze(folder, tmp_path / "full", **one).maps.attention[0].weights)
    with torch.no_grad():
        causal_TT = model(tokens_BT1[:1, :40], output_attentions=True).attentions[1][0, 2].numpy()
    np.testing.assert_allclose(full_TT.sum(axis=-1), 1, atol=1e-3)
    assert np.triu(full_TT, 1).max() > 0.01
    # Rows that pay little to earlier tokens are left out: five digits are kept.
    seen_TT = np.tril(full_TT)
    enough_T = seen_TT.sum(axis=-1) > 0.2
    assert enough_T.sum() > 10
    np.testing.assert_allclose(
        seen_TT[enough_T] / seen_TT[enough_T].sum(-1, keepdims=True), causal_TT[enough_T], atol=1e-3
    )


def test_head_output_norm_is_what_a_head_writes(make_llama, tokens_BT1, tmp_path):
    model, folder = make_llama(num_hidden_layers=2, attn_implementation="eager")
    small = {"num_sequences": B, "seq_length": T, "drop_sequences": 0, "maps": "none"}
    result = analyze(folder, tmp_path / "out", **small)
    projection = model.model.layers[1].self_attn.o_proj
    seen = {}
    projection.register_forward_hook(lambda module, args, output: seen.update(heads=args[0]))
    with torch.no_grad():
        model(tokens_BT1[:, :-1])
        for head in range(4):
            alone_BTI = torch.zeros_like(seen["heads"])
            alone_BTI[..., head * 8 : head * 8 + 8] = seen["heads"][..., head * 8 : head * 8 + 8]
            norm = (alone_BTI @ projection.weight.T).norm(dim=-1).mean().item()
            assert result.heads["head_output_norm"].mean[1][head] == pytest.approx(norm, rel=1e-4)


def test_logit_lens_is_the_loss_of_real_slices(model_and_folder, tokens_BT1, tmp_path):
    _, folder = model_and_folder
    result = analyze(folder, tmp_path / "out", **OPTIONS)
    for n in range(1, 5):
        slice_model(SliceArgs(str(folder), n=n, out_dir=tmp_path / f"slice-{n}"))
        with torch.no_grad():
            losses_B = losses_of(load_model(tmp_path / f"slice-{n}")(tokens_BT1[:, :-1]), tokens_BT1)
        assert result.layers["logit_lens_loss"].mean[n] == pytest.approx(losses_B.mean().item(), rel=1e-5)
        assert result.layers["logit_lens_loss"].std[n] == pytest.approx(losses_B.std().item(), rel=1e-3)
    assert len(result.layers["logit_lens_loss"].mean) == 5


def test_drop_loss_is_that_of_a_model_without_the_layer(model_and_folder, tokens_BT1, tmp_path):
    _, folder = model_and_folder
    result = analyze(folder, tmp_path / "out", **OPTIONS)
    some_BT1 = tokens_BT1[:4]
    with torch.no_grad():
        whole_B = losses_of(load_reference(folder)(some_BT1[:, :-1]), some_BT1)
    for layer in range(4):
        model = load_reference(folder)
        del model.transformer.h[layer]
        with torch.no_grad():
            losses_B = losses_of(model(some_BT1[:, :-1]), some_BT1)
        assert result.layers["drop_loss"].mean[layer] == pytest.approx(losses_B.mean().item(), rel=1e-5)
        assert result.layers["drop_loss"].std[layer] == pytest.approx(losses_B.std().item(), rel=1e-3)
        increase_B = losses_B - whole_B
        assert result.layers["drop_increase"].mean[layer] == pytest.approx(increase_B.mean().item(), abs=1e-5)
        assert result.layers["drop_increase"].std[layer] == pytest.approx(increase_B.std().item(), rel=1e-3)


def test_a_slice_and_its_reference_agree(make_llama, tokens_BT1, tmp_path):
    """A litgpt folder and a Hugging Face folder give the same measures of the same layers."""
    _, folder = make_llama(num_hidden_layers=4)
    slice_model(SliceArgs(str(folder), n=2, out_dir=tmp_path / "slice"))
    small = {"num_sequences": B, "seq_length": T, "drop_sequences": 0, "maps": "none"}
    whole = analyze(folder, tmp_path / "whole", **small)
    part = analyze(tmp_path / "slice", tmp_path / "part", **small)
    for name, measured in part.heads.items():
        assert measured.mean == whole.heads[name].mean[:2]
    assert part.loss.mean == pytest.approx(whole.layers["logit_lens_loss"].mean[2])
