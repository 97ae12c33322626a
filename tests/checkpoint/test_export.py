"""Exports load in transformers without a warning and give the litgpt model's logits."""

import json
import logging
import warnings
from pathlib import Path

import pytest
import torch
import transformers
from families import CASES, needs_eager, save
from safetensors.torch import load_file

from inheritune_lit.checkpoint.args import ExportArgs
from inheritune_lit.checkpoint.config import load_lit_config, save_lit_config
from inheritune_lit.checkpoint.export import export
from inheritune_lit.errors import UserError
from inheritune_lit.inherit.args import SliceArgs
from inheritune_lit.inherit.slice import slice_model
from inheritune_lit.io.manifest import read_manifest
from inheritune_lit.model.load import load_model, load_state

TOKENS_BT = torch.arange(2 * 19).reshape(2, 19) * 5 % 97


@torch.no_grad()
def check_export(
    checkpoint_dir: Path, out_dir: Path, caplog, attn_implementation: str | None = None, **options
) -> torch.nn.Module:
    export(ExportArgs(checkpoint_dir, out_dir, **options))
    loading = {"attn_implementation": attn_implementation} if attn_implementation else {}
    transformers.logging.enable_propagation()
    with caplog.at_level(logging.WARNING), warnings.catch_warnings():
        warnings.simplefilter("error")
        model, info = transformers.AutoModelForCausalLM.from_pretrained(out_dir, output_loading_info=True, **loading)
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert all(not info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    expected = load_model(checkpoint_dir, dtype=torch.float32)(TOKENS_BT)
    torch.testing.assert_close(model.float()(TOKENS_BT, use_cache=False).logits, expected, rtol=1e-4, atol=2e-5)
    return model


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"tie_word_embeddings": True, "num_key_value_heads": 1, "head_dim": 12},
        {"attention_bias": True},
        {"mlp_bias": True, "attention_bias": True},
        {
            "rope_scaling": {
                "rope_type": "llama3",
                "rope_theta": 500.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16,
            }
        },
    ],
    ids=["gqa", "tied", "attention-bias", "bias", "llama3-rope"],
)
def test_llama(make_llama, tmp_path, caplog, settings):
    _, ref = make_llama(**settings)
    checkpoint = slice_model(SliceArgs(str(ref), layers="1,3", out_dir=tmp_path / "slice")).folder
    model = check_export(checkpoint, tmp_path / "hf", caplog)
    assert model.config.num_hidden_layers == 2


@pytest.mark.parametrize("case", CASES)
def test_other_architectures(tmp_path, caplog, case):
    reference = save(case, tmp_path / "ref")
    # Of both kinds of Gemma 3's layers: transformers warns about a config.json that has rope settings for one too many.
    layers = "5,1,2" if case.startswith("gemma3") else "4,1,2"
    checkpoint = slice_model(SliceArgs(str(tmp_path / "ref"), layers=layers, out_dir=tmp_path / "slice")).folder
    attention = "eager" if needs_eager(case) else None
    model = check_export(checkpoint, tmp_path / "hf", caplog, attn_implementation=attention)
    assert type(model) is type(reference)
    card = (tmp_path / "hf/README.md").read_text()
    assert ("attn_implementation" in card) == needs_eager(case)
    # The export is a reference as good as the first one.
    again = slice_model(SliceArgs(str(tmp_path / "hf"), n=3, out_dir=tmp_path / "again")).folder
    first, second = load_state(checkpoint), load_state(again)
    assert first.keys() == second.keys()
    assert all(torch.equal(second[name], tensor) for name, tensor in first.items())


def test_a_tensor_that_is_missing_or_of_another_shape(make_llama, tmp_path):
    _, ref = make_llama()
    checkpoint = slice_model(SliceArgs(str(ref), n=2, out_dir=tmp_path / "slice")).folder
    state = {name: tensor.clone() for name, tensor in load_state(checkpoint).items()}
    norm = state.pop("transformer.h.1.norm_2.weight")
    for message in ("1 tensors are missing, such as transformer.h.1.norm_2.weight", r"norm_2.weight has shape \(31,\)"):
        torch.save(state, checkpoint / "lit_model.pth")
        with pytest.raises(UserError, match=message):
            export(ExportArgs(checkpoint, tmp_path / "hf"))
        state["transformer.h.1.norm_2.weight"] = norm[:31].clone()
    assert not (tmp_path / "hf").exists()


def test_half_width(make_llama, tmp_path, caplog):
    _, ref = make_llama(num_attention_heads=9, num_key_value_heads=3, head_dim=6, hidden_size=20)
    checkpoint = slice_model(SliceArgs(str(ref), init="half-width", out_dir=tmp_path / "slice")).folder
    check_export(checkpoint, tmp_path / "hf", caplog)


@pytest.mark.parametrize("parallel", [True, False])
def test_gpt_neox(make_neox, tmp_path, caplog, parallel):
    _, ref = make_neox(use_parallel_residual=parallel)
    checkpoint = slice_model(SliceArgs(str(ref), layers="3,1", out_dir=tmp_path / "slice")).folder
    check_export(checkpoint, tmp_path / "hf", caplog)
    exported, stored = load_file(tmp_path / "hf/model.safetensors"), load_file(ref / "model.safetensors")
    for kind in ("weight", "bias"):
        name = f"gpt_neox.layers.{{}}.attention.query_key_value.{kind}"
        assert torch.equal(exported[name.format(0)], stored[name.format(3)])


@pytest.mark.parametrize("scale", ["position", "keep"])
def test_gpt2_scale_is_folded_into_the_weights(make_gpt2, tmp_path, caplog, scale):
    _, ref = make_gpt2(scale_attn_by_inverse_layer_idx=True)
    checkpoint = slice_model(SliceArgs(str(ref), layers="2-3", attn_scale=scale, out_dir=tmp_path / "slice")).folder
    model = check_export(checkpoint, tmp_path / "hf", caplog)
    assert model.config.scale_attn_by_inverse_layer_idx is False
    assert model.config._attn_implementation == "sdpa"


def test_gpt2_without_biases_gets_zeros(make_gpt2, tmp_path, caplog):
    """The paper's own GPT-2 models have no biases at all."""
    _, ref = make_gpt2()
    checkpoint = slice_model(SliceArgs(str(ref), n=2, out_dir=tmp_path / "slice")).folder
    config = load_lit_config(checkpoint)
    config.bias = config.norm_bias = False
    save_lit_config(config, checkpoint)
    state = {name: tensor.clone() for name, tensor in load_state(checkpoint).items() if not name.endswith("bias")}
    state["lm_head.weight"] = state["transformer.wte.weight"]
    torch.save(state, checkpoint / "lit_model.pth")
    check_export(checkpoint, tmp_path / "hf", caplog)


def test_shards_card_and_files(make_llama, tmp_path, caplog):
    _, ref = make_llama(dtype=torch.bfloat16)
    checkpoint = slice_model(SliceArgs(str(ref), n=3, out_dir=tmp_path / "slice")).folder
    check_export(checkpoint, tmp_path / "hf", caplog, max_shard_bytes=20_000, licence="apache-2.0")
    shards = sorted((tmp_path / "hf").glob("*.safetensors"))
    assert len(shards) > 2
    assert all(shard.stat().st_size < 22_000 for shard in shards)
    index = json.loads((tmp_path / "hf/model.safetensors.index.json").read_text())
    tensors = {name: tensor for shard in shards for name, tensor in load_file(shard).items()}
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    assert index["weight_map"].keys() == tensors.keys()
    card = (tmp_path / "hf/README.md").read_text()
    assert "license: apache-2.0" in card
    assert "Inherited layers: 0, 1, 2" in card
    assert (tmp_path / "hf/generation_config.json").is_file()
    assert read_manifest(tmp_path / "hf")["kind"] == "export"


def test_round_trip_is_byte_equal(make_llama, tmp_path):
    _, ref = make_llama(dtype=torch.bfloat16)
    export(ExportArgs(slice_model(SliceArgs(str(ref), n=5, out_dir=tmp_path / "slice")).folder, tmp_path / "hf"))
    stored, exported = load_file(ref / "model.safetensors"), load_file(tmp_path / "hf/model.safetensors")
    assert stored.keys() == exported.keys()
    assert all(torch.equal(stored[name], exported[name]) for name in stored)


def test_card_follows_the_lineage(make_llama, tmp_path):
    """Slice, train, slice again, train again: layers are the first reference's, tokens add up."""
    _, ref = make_llama()

    def trained(checkpoint: Path, tokens: int) -> None:
        parent = read_manifest(checkpoint)
        (checkpoint / "inheritune.json").write_text(
            json.dumps({"kind": "checkpoint", "tokens": tokens, "parent": parent})
        )

    first = slice_model(SliceArgs(str(ref), layers="0,2,4", out_dir=tmp_path / "first")).folder
    trained(first, 1000)
    second = slice_model(SliceArgs(str(first), layers="last:2", out_dir=tmp_path / "second")).folder
    trained(second, 500)
    export(ExportArgs(second, tmp_path / "hf"))
    card = (tmp_path / "hf/README.md").read_text()
    assert "Reference: local/ref, 5 layers" in card
    assert "Inherited layers: 2, 4" in card
    assert "Tokens trained after inheriting: 1,500" in card


def test_card_of_a_grown_model_names_all_its_layers(make_llama, tmp_path):
    _, ref = make_llama()
    start, grown = (slice_model(SliceArgs(str(ref), n=n, out_dir=tmp_path / f"{n}")).folder for n in (2, 3))
    parent = {"kind": "checkpoint", "tokens": 1000, "parent": read_manifest(start)}
    manifest = {"kind": "checkpoint", "layers": [0, 1, 4], "tokens": 500, "parent": parent}
    (grown / "inheritune.json").write_text(json.dumps(manifest))
    export(ExportArgs(grown, tmp_path / "hf"))
    card = (tmp_path / "hf/README.md").read_text()
    assert "Reference: local/ref, 5 layers" in card and "Inherited layers: 0, 1, 4" in card
    assert "Tokens trained after inheriting: 1,500" in card


def test_bad_input(make_llama, tmp_path, capsys):
    from inheritune_lit.cli import main

    _, ref = make_llama()
    checkpoint = slice_model(SliceArgs(str(ref), n=1, out_dir=tmp_path / "slice")).folder
    with pytest.raises(UserError, match="not a litgpt checkpoint"):
        export(ExportArgs(ref, tmp_path / "hf"))
    with pytest.raises(UserError, match="already holds"):
        export(ExportArgs(checkpoint, ref))
    with pytest.raises(UserError, match="give 1 or more"):
        export(ExportArgs(checkpoint, tmp_path / "hf", max_shard_bytes=0))
    assert not (tmp_path / "hf").exists()
    assert main(["export", "--checkpoint_dir", str(checkpoint), "--out_dir", str(tmp_path / "hf")]) == 0
    assert (tmp_path / "hf/model.safetensors").is_file()
