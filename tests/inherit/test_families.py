"""Slices of every other architecture against transformers with the layers removed."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from families import CASES, build, logits_without_layers, save
from litgpt.scripts.convert_lit_checkpoint import convert_lit_checkpoint
from safetensors.torch import load_file

from inheritune_lit.checkpoint.args import ExportArgs
from inheritune_lit.checkpoint.config import load_config
from inheritune_lit.checkpoint.export import export
from inheritune_lit.errors import UserError
from inheritune_lit.inherit.args import SliceArgs
from inheritune_lit.inherit.slice import slice_model
from inheritune_lit.model.load import load_model, load_state

TOKENS_BT = torch.arange(2 * 19).reshape(2, 19) * 5 % 97
LAYERS = [4, 1, 2]
WITHOUT_CONFIG = {
    # Without config.json, what is left of these models is a LLaMA.
    "mistral": "llama",
    "phi3": "llama",
}


def logits(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        return load_model(folder)(TOKENS_BT)


def sliced(case: str, folder: Path, **options) -> Path:
    return slice_model(SliceArgs(str(folder / "ref"), out_dir=folder / "out", **options)).folder


def model_type(folder: Path) -> str:
    return json.loads((folder / "config.json").read_text())["model_type"]


@pytest.mark.parametrize("case", CASES)
def test_logits_without_layers(case, tmp_path):
    model = save(case, tmp_path / "ref")
    out = sliced(case, tmp_path, layers="4,1-2")
    expected = logits_without_layers(model, LAYERS, TOKENS_BT)
    torch.testing.assert_close(logits(out), expected, rtol=1e-4, atol=2e-5)
    whole = model_type(out)
    (out / "config.json").unlink()
    again = slice_model(SliceArgs(str(out), layers="2,0", out_dir=tmp_path / "again")).folder
    assert model_type(again) == WITHOUT_CONFIG.get(case, whole)
    expected = logits_without_layers(model, [2, 0], TOKENS_BT)
    torch.testing.assert_close(logits(again), expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("case", CASES)
def test_exported_tensors_are_those_of_the_reference(case, tmp_path):
    save(case, tmp_path / "ref")
    hf = export(ExportArgs(sliced(case, tmp_path, layers="4,1-2"), tmp_path / "hf")).folder
    stored, exported = (load_file(folder / "model.safetensors") for folder in (tmp_path / "ref", hf))
    block = ".h." if "falcon" in case else ".layers."
    for name, tensor in exported.items():
        before, found, after = name.partition(block)
        layer, _, rest = after.partition(".")
        assert torch.equal(tensor, stored[f"{before}{block}{LAYERS[int(layer)]}.{rest}" if found else name]), name
    inherited = [name for name in stored if block not in name or int(name.partition(block)[2].split(".")[0]) in LAYERS]
    assert len(exported) == len(inherited)


@pytest.mark.parametrize("case", ["gemma2", "gemma3", "phi", "phi3", "olmo2", "falcon-40b", "mixtral"])
def test_parts_are_inherited_or_begin_afresh(case, tmp_path):
    save(case, tmp_path / "ref")
    given = {"ref": str(tmp_path / "ref"), "n": 2, "seed": 3}
    whole = load_state(slice_model(SliceArgs(**given, out_dir=tmp_path / "whole")).folder)
    fresh = load_state(slice_model(SliceArgs(**given, init="random", out_dir=tmp_path / "fresh")).folder)
    for part in ("attn", "mlp", "norm"):
        state = load_state(slice_model(SliceArgs(**given, parts=part, out_dir=tmp_path / part)).folder)
        for name, tensor in state.items():
            child = name.split(".")[3] if ".h." in name else None
            inherited = child is None or part == ("norm" if "norm" in child else child)
            assert torch.equal(tensor, (whole if inherited else fresh)[name]), name
            if not inherited:
                assert not torch.equal(tensor, whole[name])


@pytest.mark.parametrize(("case", "value"), [("gemma", 0.0), ("gemma3", 0.0), ("olmo2", 1.0), ("phi", 1.0)])
def test_random_norms_are_neutral_as_in_transformers(case, value, tmp_path):
    save(case, tmp_path / "ref")
    state = load_state(sliced(case, tmp_path, n=2, init="random"))
    norms = [tensor for name, tensor in state.items() if ("norm" in name or "ln_f" in name) and name.endswith("weight")]
    assert norms and all(tensor.eq(value).all() for tensor in norms)


@pytest.mark.parametrize("case", ["gemma2", "phi3", "olmo2", "falcon-40b", "stablelm"])
def test_half_width_runs_and_exports(case, tmp_path):
    sizes = {"num_kv_heads": 4} if "falcon" in case else {"num_key_value_heads": 4}
    save(case, tmp_path / "ref", num_attention_heads=8, **sizes)
    out = sliced(case, tmp_path, init="half-width")
    assert (load_config(out).n_embd, load_config(out).n_head, load_config(out).n_query_groups) == (16, 4, 2)
    exported = transformers.AutoModelForCausalLM.from_pretrained(
        export(ExportArgs(out, tmp_path / "hf")).folder, attn_implementation="eager"
    )
    with torch.no_grad():
        torch.testing.assert_close(exported(TOKENS_BT, use_cache=False).logits, logits(out), rtol=1e-4, atol=2e-5)


def test_half_width_of_experts_is_refused(tmp_path):
    save("mixtral", tmp_path / "ref")
    with pytest.raises(UserError, match="mixture of experts"):
        sliced("mixtral", tmp_path, init="half-width")


def test_every_layer_keeps_its_own_kind(tmp_path):
    """Gemma 2's even layers have a window, Gemma 3's all but every sixth, wherever they are put."""
    for case, layers, windowed in (("gemma2", "1,1,2,0,3", [0, 0, 1, 1, 0]), ("gemma3", "5,6,5,0", [0, 1, 0, 1])):
        model = save(case, tmp_path / case)
        out = slice_model(SliceArgs(str(tmp_path / case), layers=layers, out_dir=tmp_path / f"{case}-out")).folder
        config, hf = load_config(out), json.loads((out / "config.json").read_text())
        assert config.sliding_window_indices == windowed
        assert [kind == "sliding_attention" for kind in hf["layer_types"]] == windowed
        expected = logits_without_layers(model, [int(layer) for layer in layers.split(",")], TOKENS_BT)
        torch.testing.assert_close(logits(out), expected, rtol=1e-4, atol=2e-5)
    # Kinds are repeated with the layers: 0, 1, 2, 0, 1, 2 is windowed, not, windowed, windowed, not, windowed.
    out = slice_model(
        SliceArgs(str(tmp_path / "gemma2"), n=6, init="hybrid-stack", out_dir=tmp_path / "stacked")
    ).folder
    assert load_config(out).sliding_window_indices == [1, 0, 1, 1, 0, 1]


def test_layer_kinds_that_config_json_leaves_out(tmp_path):
    """The published Gemma 2 and 3 state no layer_types, and their rotary positions as transformers 4 does."""
    for case in ("gemma2", "gemma3"):
        model = save(case, tmp_path / case)
        file = tmp_path / case / "config.json"
        hf = json.loads(file.read_text())
        del hf["layer_types"], hf["rope_parameters"]
        if case == "gemma3":
            hf |= {"rope_theta": 5000.0, "rope_local_base_freq": 100.0, "sliding_window_pattern": 6}
            hf |= {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}
        file.write_text(json.dumps(hf))
        out = slice_model(SliceArgs(str(tmp_path / case), layers="3-4,0", out_dir=tmp_path / f"{case}-out")).folder
        expected = logits_without_layers(model, [3, 4, 0], TOKENS_BT)
        torch.testing.assert_close(logits(out), expected, rtol=1e-4, atol=2e-5)


def test_a_window_that_never_ends_is_dropped(tmp_path):
    for case in ("gemma2-long-window", "gemma3-long-window"):
        save(case, tmp_path / case)
        out = slice_model(SliceArgs(str(tmp_path / case), n=2, out_dir=tmp_path / f"{case}-out")).folder
        assert load_config(out).sliding_window_size is None


def test_experts_stored_in_one_tensor_are_refused_with_the_remedy(tmp_path):
    """As transformers 5 holds them in memory, and saves them only when asked to."""
    build("mixtral").save_pretrained(tmp_path / "one", save_original_format=False)
    assert load_file(tmp_path / "one/model.safetensors")["model.layers.0.mlp.experts.down_proj"].ndim == 3
    with pytest.raises(
        UserError, match=r"experts\.\w+_proj, all experts in one tensor; save it .* save_original_format"
    ):
        slice_model(SliceArgs(str(tmp_path / "one"), n=1, out_dir=tmp_path / "out"))


REFUSED = [
    ("falcon-7b", {"alibi": True}, "alibi"),
    ("falcon-7b", {"parallel_attn": False}, "parallel_attn"),
    ("olmo", {"clip_qkv": 8.0}, "clip_qkv"),
    ("olmo2", {"attention_bias": True}, "attention_bias"),
    ("phi", {"qk_layernorm": True}, "qk_layernorm"),
    ("stablelm", {"qk_layernorm": True}, "qk_layernorm"),
    ("qwen3-moe", {"norm_topk_prob": False}, "norm_topk_prob"),
    ("qwen3-moe", {"mlp_only_layers": [1]}, "layers without experts"),
    ("qwen3-moe", {"decoder_sparse_step": 2}, "layers without experts"),
    ("gemma3", {"use_bidirectional_attention": True}, "causal"),
    ("gemma", {"hidden_act": "silu", "hidden_activation": None}, "hidden_activation"),
    ("gemma2", {"layer_types": ["full_attention"]}, "layer_types"),
    ("phi3", {"rope_scaling": {"rope_type": "longrope"}, "rope_parameters": None}, "longrope"),
    ("mixtral", {"model_type": "mixtral2"}, "supported: llama, .*gemma3_text.*stablelm"),
]


@pytest.mark.parametrize(("case", "entries", "message"), REFUSED)
def test_what_litgpt_cannot_compute_is_refused(case, entries, message, tmp_path):
    (tmp_path / "ref").mkdir()
    hf = json.loads(build(case).config.to_json_string(use_diff=False))
    (tmp_path / "ref/config.json").write_text(json.dumps({**hf, **entries}))
    with pytest.raises(UserError, match=message) as caught:
        sliced(case, tmp_path, n=1, dry_run=True)
    assert "\n" not in str(caught.value)


NOT_BY_LITGPT = (
    # It puts the rows of grouped qkv back in an order that is not Falcon's,
    *("falcon-7b", "falcon-40b", "falcon-11b", "falcon-multi-head"),
    # looks for a norm_2 that its OLMo-2 does not have, and knows no biases of StableLM's qkv.
    *("olmo2", "olmo2-tied", "stablelm-parallel"),
)


@pytest.mark.parametrize("case", [case for case in CASES if case not in NOT_BY_LITGPT])
def test_litgpt_converts_the_slice_to_the_same_names(case, tmp_path):
    """Its converter goes by the model's name, so this shows that slices are named as it wants."""
    save(case, tmp_path / "ref")
    out = sliced(case, tmp_path, layers="4,1")
    convert_lit_checkpoint(out, tmp_path / "litgpt")
    found = torch.load(tmp_path / "litgpt/model.pth", weights_only=True)
    expected = load_file(export(ExportArgs(out, tmp_path / "hf")).folder / "model.safetensors")
    assert found.keys() - {"lm_head.weight"} == expected.keys() - {"lm_head.weight"}
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items() if name in found)
