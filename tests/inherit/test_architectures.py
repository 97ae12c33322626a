"""GPT-NeoX and GPT-2 slices against transformers with the layers removed."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from inheritune_lit.errors import UserError
from inheritune_lit.inherit.args import SliceArgs
from inheritune_lit.inherit.slice import slice_model
from inheritune_lit.io.manifest import read_manifest
from inheritune_lit.model.gpt import GPT2
from inheritune_lit.model.load import is_tied, load_model, load_state

TOKENS_BT = torch.arange(2 * 19).reshape(2, 19) * 5 % 97


def logits(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        return load_model(folder, dtype=torch.float32)(TOKENS_BT)


@torch.no_grad()
def neox_without_layers(model, layers) -> torch.Tensor:
    model.gpt_neox.layers = torch.nn.ModuleList(model.gpt_neox.layers[i] for i in layers)
    return model(TOKENS_BT, use_cache=False).logits


@torch.no_grad()
def gpt2_without_layers(model, layers, positions=None) -> torch.Tensor:
    """``positions``: the layer number whose inverse scales each layer's attention; its own by default."""
    model.transformer.h = torch.nn.ModuleList(model.transformer.h[i] for i in layers)
    for block, position in zip(model.transformer.h, positions or range(len(layers)), strict=True):
        block.attn.layer_idx = position
        # transformers 5 computes the scale when the module is built.
        if model.config.scale_attn_by_inverse_layer_idx and hasattr(block.attn, "scaling"):
            block.attn.scaling = block.attn.head_dim**-0.5 / (position + 1)
    return model(TOKENS_BT, use_cache=False).logits


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_parallel_residual": False, "rotary_pct": 1.0, "hidden_act": "gelu_new"},
        {"tie_word_embeddings": True, "rotary_pct": 0.5},
        {"attention_bias": False},
    ],
    ids=["pythia", "sequential", "tied", "no-attention-bias"],
)
def test_gpt_neox(make_neox, tmp_path, settings):
    model, ref = make_neox(**settings)
    out = slice_model(SliceArgs(str(ref), layers="3,0-1", out_dir=tmp_path / "out")).folder
    torch.testing.assert_close(logits(out), neox_without_layers(model, [3, 0, 1]), rtol=1e-4, atol=1e-5)


def test_gpt_neox_half_width_takes_leading_heads(make_neox, tmp_path):
    _, ref = make_neox()
    out = slice_model(SliceArgs(str(ref), init="half-width", layers="1", out_dir=tmp_path / "out")).folder
    stored = load_file(ref / "model.safetensors")["gpt_neox.layers.1.attention.query_key_value.weight"]
    # (head, q/k/v, head size, width)
    by_head = stored.view(4, 3, 8, 32)[:2, :, :, :16]
    qkv = load_state(out)["transformer.h.0.attn.qkv.weight"]
    assert torch.equal(qkv, by_head.transpose(0, 1).reshape(48, 16))


def test_gpt2_with_and_without_scale(make_gpt2, tmp_path):
    for scale in (False, True):
        model, ref = make_gpt2(name=f"ref-{scale}", scale_attn_by_inverse_layer_idx=scale)
        out = slice_model(SliceArgs(str(ref), layers="2,0,3", out_dir=tmp_path / f"out-{scale}")).folder
        assert isinstance(load_model(out), GPT2)
        torch.testing.assert_close(logits(out), gpt2_without_layers(model, [2, 0, 3]), rtol=1e-4, atol=1e-5)
        assert is_tied(load_state(out))


def test_gpt2_scale_moves_with_the_layer_when_kept(make_gpt2, tmp_path):
    model, ref = make_gpt2(scale_attn_by_inverse_layer_idx=True)
    kept = slice_model(SliceArgs(str(ref), layers="2-3", attn_scale="keep", out_dir=tmp_path / "kept")).folder
    moved = slice_model(SliceArgs(str(ref), layers="2-3", out_dir=tmp_path / "moved")).folder
    again = slice_model(SliceArgs(str(kept), layers="1", attn_scale="keep", out_dir=tmp_path / "again")).folder
    assert read_manifest(kept)["attn_scale"] == "keep"
    assert read_manifest(moved)["attn_scale"] == "position"
    assert not torch.allclose(logits(kept), logits(moved), atol=1e-3)
    expected = gpt2_without_layers(model, [2, 3], positions=[2, 3])
    torch.testing.assert_close(logits(kept), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logits(again), gpt2_without_layers(model, [1], positions=[3]), rtol=1e-4, atol=1e-5)


def test_gpt2_cache_gives_the_same_logits(make_gpt2, tmp_path):
    _, ref = make_gpt2(scale_attn_by_inverse_layer_idx=True)
    model = load_model(slice_model(SliceArgs(str(ref), n=3, out_dir=tmp_path / "out")).folder)
    with torch.no_grad():
        whole = model(TOKENS_BT)
        chunks = model(TOKENS_BT, lm_head_chunk_size=7)
        model.set_kv_cache(batch_size=2)
        first = model(TOKENS_BT[:, :11], input_pos=torch.arange(11), input_pos_maxp1=11)
        rest = model(TOKENS_BT[:, 11:], input_pos=torch.arange(11, 19), input_pos_maxp1=19)
    torch.testing.assert_close(torch.cat((first, rest), dim=1), whole, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.cat(chunks, dim=1), whole)


def test_gpt2_saved_without_prefix_and_with_masks(make_gpt2, tmp_path):
    """As the hub's gpt2 is: names of the model without its head, and a causal mask a layer."""
    model, ref = make_gpt2()
    stored = {name.removeprefix("transformer."): value for name, value in load_file(ref / "model.safetensors").items()}
    stored |= {f"h.{layer}.attn.bias": torch.ones(1, 1, 64, 64) for layer in range(4)}
    save_file(stored, ref / "model.safetensors")
    out = slice_model(SliceArgs(str(ref), n=2, out_dir=tmp_path / "out")).folder
    torch.testing.assert_close(logits(out), gpt2_without_layers(model, [0, 1]), rtol=1e-4, atol=1e-5)


def test_gpt2_random_follows_its_scheme(make_gpt2, tmp_path):
    _, ref = make_gpt2(initializer_range=0.1, n_embd=128)
    state = load_state(slice_model(SliceArgs(str(ref), n=2, init="random", out_dir=tmp_path / "out")).folder)
    # transformers' GPT-2: residual projections have deviation initializer_range / sqrt(2 * layers).
    assert state["transformer.h.0.attn.proj.weight"].std().item() == pytest.approx(0.05, rel=0.1)
    assert state["transformer.h.0.mlp.fc.weight"].std().item() == pytest.approx(0.1, rel=0.1)
    assert state["transformer.wpe.weight"].std().item() == pytest.approx(0.1, rel=0.1)
    assert state["transformer.ln_f.bias"].eq(0).all()


def test_half_width_needs_divisible_heads(make_gpt2, tmp_path):
    _, ref = make_gpt2(n_head=1)
    with pytest.raises(UserError, match="half-width"):
        slice_model(SliceArgs(str(ref), init="half-width", out_dir=tmp_path / "out"))


def test_config_json_of_a_gpt2_slice(make_gpt2, tmp_path):
    _, ref = make_gpt2()
    hf = json.loads(
        (slice_model(SliceArgs(str(ref), n=2, out_dir=tmp_path / "out")).folder / "config.json").read_text()
    )
    assert (hf["n_layer"], hf["tie_word_embeddings"], hf["model_type"]) == (2, True, "gpt2")


# pytorch_model.bin


@pytest.mark.parametrize("legacy", [False, True])
def test_bin_files(make_neox, tmp_path, legacy):
    _, ref = make_neox()
    expected = load_state(slice_model(SliceArgs(str(ref), n=2, out_dir=tmp_path / "expected")).folder)
    stored = load_file(ref / "model.safetensors")
    (ref / "model.safetensors").unlink()
    torch.save(stored, ref / "pytorch_model.bin", _use_new_zipfile_serialization=not legacy)
    single = slice_model(SliceArgs(str(ref), n=2, out_dir=tmp_path / "single")).folder
    assert read_manifest(single)["reference"]["format"] == "bin"

    (ref / "pytorch_model.bin").unlink()
    names = sorted(stored)
    shards = {"pytorch_model-00001-of-00002.bin": names[::2], "pytorch_model-00002-of-00002.bin": names[1::2]}
    for file, members in shards.items():
        torch.save({name: stored[name] for name in members}, ref / file)
    weight_map = {name: file for file, members in shards.items() for name in members}
    (ref / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    sharded = slice_model(SliceArgs(str(ref), n=2, out_dir=tmp_path / "sharded")).folder
    for out in (single, sharded):
        state = load_state(out)
        assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())
    assert len(read_manifest(sharded)["reference"]["files"]) == 2
    unhashed = slice_model(SliceArgs(str(ref), n=2, hash_sources=False, out_dir=tmp_path / "unhashed")).folder
    assert [file["sha256"] for file in read_manifest(unhashed)["reference"]["files"]] == [None, None]


class Payload:
    """Runs a command when it is unpickled."""

    def __init__(self, flag: Path) -> None:
        self.flag = flag

    def __reduce__(self):
        return (Path.touch, (self.flag,))


@pytest.mark.parametrize("file", ["pytorch_model.bin", "lit_model.pth"])
def test_pickle_with_code_is_refused_and_not_run(make_llama, tmp_path, file):
    _, ref = make_llama()
    (ref / "model.safetensors").unlink()
    if file == "lit_model.pth":
        ref = slice_model(SliceArgs(str(ref), n=1, init="random", out_dir=tmp_path / "lit")).folder
    torch.save({"model.norm.weight": torch.ones(2), "evil": Payload(tmp_path / "ran")}, ref / file)
    with pytest.raises(UserError, match="not loaded; use safetensors"):
        slice_model(SliceArgs(str(ref), n=1, out_dir=tmp_path / "out"))
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "out").exists()
