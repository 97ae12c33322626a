"""Slices against transformers with the layers removed, and byte by byte against the reference's files."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from litgpt.model import GPT
from safetensors.torch import load_file
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import models

from inheritune_lit.checkpoint.config import Config
from inheritune_lit.errors import UserError
from inheritune_lit.inherit.args import SliceArgs
from inheritune_lit.inherit.slice import slice_model
from inheritune_lit.io.manifest import read_manifest, sha256_file
from inheritune_lit.model.load import is_tied, load_model, load_state

TOKENS_BT = torch.arange(2 * 17).reshape(2, 17) * 7 % 97


def without_layers(model: torch.nn.Module, layers: list[int]) -> torch.Tensor:
    """Logits (B, T, V) of a transformers LLaMA that keeps only ``layers``."""
    model.model.layers = torch.nn.ModuleList(model.model.layers[i] for i in layers)
    with torch.no_grad():
        return model(TOKENS_BT, use_cache=False).logits


def logits(folder) -> torch.Tensor:
    with torch.no_grad():
        return load_model(folder, dtype=torch.float32)(TOKENS_BT)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"tie_word_embeddings": True, "num_key_value_heads": 1},
        {"num_key_value_heads": 4, "attention_bias": True, "mlp_bias": True},
        {"attention_bias": True},
        {"mlp_bias": True, "head_dim": 12},
        {"rope_theta": 777.0},
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
        {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    ],
    ids=["gqa", "tied-mqa", "mha-bias", "attention-bias", "mlp-bias", "theta", "llama3-rope", "linear-rope"],
)
def test_logits_equal_transformers_with_layers_removed(make_llama, tmp_path, settings):
    model, ref = make_llama(**settings)
    out = slice_model(SliceArgs(str(ref), n=3, out_dir=tmp_path / "out")).folder
    torch.testing.assert_close(logits(out), without_layers(model, [0, 1, 2]), rtol=1e-4, atol=1e-5)


def test_whole_reference_and_chosen_layers(make_llama, tmp_path):
    model, ref = make_llama(shard_size="20KB")
    assert len(list(ref.glob("*.safetensors"))) > 2
    whole = slice_model(SliceArgs(str(ref), n=5, out_dir=tmp_path / "whole")).folder
    chosen = slice_model(SliceArgs(str(ref), layers="4,1-2", out_dir=tmp_path / "chosen")).folder
    torch.testing.assert_close(logits(whole), without_layers(model, [0, 1, 2, 3, 4]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logits(chosen), without_layers(model, [4, 1, 2]), rtol=1e-4, atol=1e-5)
    assert read_manifest(chosen)["layers"] == [4, 1, 2]


def test_inherited_bytes_and_record(make_llama, tmp_path):
    _, ref = make_llama(dtype=torch.bfloat16)
    FastTokenizer(models.BPE()).save(str(ref / "tokenizer.json"))
    out = slice_model(SliceArgs(str(ref), n=2, out_dir=tmp_path / "out")).folder
    stored, state = load_file(ref / "model.safetensors"), load_state(out)
    assert torch.equal(state["transformer.h.1.mlp.fc_2.weight"], stored["model.layers.1.mlp.up_proj.weight"])
    q, k, v = (stored[f"model.layers.1.self_attn.{part}_proj.weight"] for part in "qkv")
    assert torch.equal(state["transformer.h.1.attn.qkv.weight"], torch.cat((q, k, v)))
    assert {tensor.dtype for tensor in state.values()} == {torch.bfloat16}

    manifest = read_manifest(out)
    total = sum(tensor.numel() for tensor in state.values())
    assert manifest["kind"] == "slice"
    assert manifest["parameters"] == {"total": total, "non_embedding": total - 2 * 97 * 32}
    assert manifest["reference"]["files"][0]["sha256"] == sha256_file(ref / "model.safetensors")
    hf = json.loads((out / "config.json").read_text())
    assert hf["num_hidden_layers"] == 2
    assert hf["tie_word_embeddings"] is False
    assert (out / "tokenizer.json").is_file()
    assert (out / "generation_config.json").is_file()
    config = Config.from_file(out / "model_config.yaml")
    assert (config.name, config.hf_config["name"], config.n_layer, config.padded_vocab_size) == (
        "ref-2l",
        "ref-2l",
        2,
        97,
    )


def test_tied_head_shares_storage_in_the_file(make_llama, tmp_path):
    _, ref = make_llama(tie_word_embeddings=True)
    out = slice_model(SliceArgs(str(ref), n=2, out_dir=tmp_path / "out")).folder
    assert is_tied(load_state(out))
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is True
    assert (out / "lit_model.pth").stat().st_size < 4 * sum(p.numel() for p in load_model(out).parameters()) + 30_000


def test_file_loads_with_plain_torch_and_litgpt(make_llama, tmp_path):
    _, ref = make_llama()
    out = slice_model(SliceArgs(str(ref), n=2, out_dir=tmp_path / "out")).folder
    from litgpt.utils import lazy_load

    plain = torch.load(out / "lit_model.pth", weights_only=True)
    lazy = lazy_load(out / "lit_model.pth")
    for name, tensor in load_state(out).items():
        assert torch.equal(plain[name], tensor)
        assert torch.equal(lazy[name]._load_tensor(), tensor)
    GPT(Config.from_checkpoint(out)).load_state_dict(plain, strict=True)


@pytest.mark.parametrize("tied", [False, True])
def test_litgpt_folder_as_reference(make_llama, tmp_path, tied):
    _, ref = make_llama(tie_word_embeddings=tied)
    first = slice_model(SliceArgs(str(ref), n=4, out_dir=tmp_path / "four")).folder
    second = slice_model(SliceArgs(str(first), layers="last:2", out_dir=tmp_path / "two")).folder
    direct = slice_model(SliceArgs(str(ref), layers="2-3", out_dir=tmp_path / "direct")).folder
    expected, found = load_state(direct), load_state(second)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert is_tied(found) is tied
    assert json.loads((second / "config.json").read_text())["num_hidden_layers"] == 2
    assert read_manifest(second)["reference"]["format"] == "litgpt"


@pytest.mark.parametrize("change", [0.0, 1.0])
def test_litgpt_folder_with_a_head_stored_twice(make_llama, tmp_path, change):
    """As litgpt's converter writes tied models; its training unties them."""
    _, ref = make_llama(tie_word_embeddings=True)
    first = slice_model(SliceArgs(str(ref), n=2, out_dir=tmp_path / "two")).folder
    state = {name: tensor.clone() for name, tensor in load_state(first).items()}
    state["lm_head.weight"] += change
    torch.save(state, first / "lit_model.pth")
    out = slice_model(SliceArgs(str(first), n=1, out_dir=tmp_path / "out")).folder
    assert is_tied(load_state(out)) is (change == 0)
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is (change == 0)
    assert torch.equal(load_state(out)["lm_head.weight"], state["lm_head.weight"])


def test_folder_that_is_half_litgpts(make_llama, tmp_path):
    """litgpt's download leaves safetensors beside its own files; a broken conversion leaves only some of these."""
    _, ref = make_llama()
    litgpt = slice_model(SliceArgs(str(ref), n=5, out_dir=tmp_path / "litgpt")).folder
    expected = load_state(slice_model(SliceArgs(str(ref), n=2, out_dir=tmp_path / "expected")).folder)
    for number, files in enumerate((["lit_model.pth"], ["model_config.yaml"], ["lit_model.pth", "model_config.yaml"])):
        for file in ("lit_model.pth", "model_config.yaml"):
            (ref / file).unlink(missing_ok=True)
        for file in files:
            shutil.copyfile(litgpt / file, ref / file)
        state = load_state(slice_model(SliceArgs(str(ref), n=2, out_dir=tmp_path / f"out{number}")).folder)
        assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())


def test_litgpt_folder_without_config_json(make_llama, tmp_path):
    model, ref = make_llama()
    first = slice_model(SliceArgs(str(ref), n=4, out_dir=tmp_path / "four")).folder
    (first / "config.json").unlink()
    out = slice_model(SliceArgs(str(first), n=2, out_dir=tmp_path / "out")).folder
    assert json.loads((out / "config.json").read_text())["model_type"] == "llama"
    torch.testing.assert_close(logits(out), without_layers(model, [0, 1]), rtol=1e-4, atol=1e-5)


def test_default_folder_is_named_after_the_reference(make_llama, tmp_path, monkeypatch):
    make_llama(name="tiny")
    monkeypatch.chdir(tmp_path)
    slice_model(SliceArgs("tiny", n=1))
    assert (tmp_path / "checkpoints/local/tiny-1l/lit_model.pth").is_file()


def test_dry_run_writes_nothing(make_llama, tmp_path):
    _, ref = make_llama()
    printed = str(slice_model(SliceArgs(str(ref), layers="3", out_dir=tmp_path / "out", dry_run=True)))
    assert not (tmp_path / "out").exists()
    assert "transformer.h.0.attn.proj.weight <- model.layers.3.self_attn.o_proj.weight" in printed
    assert "1 layers" in printed


def test_nan_in_the_reference_is_a_warning(make_llama, tmp_path, caplog):
    model, _ = make_llama()
    model.model.layers[0].mlp.up_proj.weight.data[3, 3] = float("nan")
    model.save_pretrained(tmp_path / "nan")
    slice_model(SliceArgs(str(tmp_path / "nan"), n=1, out_dir=tmp_path / "out"))
    assert "transformer.h.0.mlp.fc_2.weight" in caplog.text


def test_random_needs_no_weights_and_follows_the_seed(make_llama, tmp_path):
    _, ref = make_llama(initializer_range=0.05, hidden_size=64, dtype=torch.bfloat16)
    (ref / "model.safetensors").unlink()
    first = slice_model(SliceArgs(str(ref), n=3, init="random", seed=1, out_dir=tmp_path / "a")).folder
    again = slice_model(SliceArgs(str(ref), n=3, init="random", seed=1, out_dir=tmp_path / "b")).folder
    other = slice_model(SliceArgs(str(ref), n=3, init="random", seed=2, out_dir=tmp_path / "c")).folder
    state, same, different = load_state(first), load_state(again), load_state(other)
    assert all(torch.equal(state[name], same[name]) for name in state)
    name = "transformer.h.2.mlp.fc_1.weight"
    assert not torch.equal(state[name], different[name])
    assert not torch.equal(state[name], state["transformer.h.1.mlp.fc_1.weight"])
    assert state[name].float().std().item() == pytest.approx(0.05, rel=0.1)
    assert state["transformer.ln_f.weight"].eq(1).all()
    assert state[name].dtype == torch.bfloat16
    assert read_manifest(first)["layers"] is None


# Bad input.


def assert_refused(message: str, out, *args, **kwargs) -> None:
    with pytest.raises(UserError, match=message) as caught:
        slice_model(SliceArgs(*args, out_dir=out, **kwargs))
    assert "\n" not in str(caught.value)
    assert not list(out.parent.glob(f".{out.name}*"))


def test_unknown_reference_suggests_near_names(tmp_path):
    assert_refused("did you mean openllama-3b", tmp_path / "out", "openlama-3b", n=2)
    assert_refused("no folder", tmp_path / "out", "./nowhere", n=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 6}, "more than the reference's 5 layers"),
        ({"n": 0}, "below 1"),
        ({"n": -2}, "below 1"),
        ({}, "give --n or --layers"),
        ({"n": 2, "layers": "last:2"}, "both choose layers"),
        ({"layers": "first:9"}, "the reference has 5"),
    ],
)
def test_impossible_layers(make_llama, tmp_path, options, message):
    _, ref = make_llama()
    assert_refused(message, tmp_path / "out", str(ref), **options)


def test_folder_without_checkpoint(make_llama, tmp_path):
    (tmp_path / "empty").mkdir()
    assert_refused("no checkpoint", tmp_path / "out", str(tmp_path / "empty"), n=1)
    _, ref = make_llama()
    (ref / "model.safetensors").unlink()
    assert_refused("holds no weights", tmp_path / "out", str(ref), n=1)


@pytest.mark.parametrize("keep", [4, 100, 5000, -1])
def test_truncated_safetensors(make_llama, tmp_path, keep):
    _, ref = make_llama()
    data = (ref / "model.safetensors").read_bytes()
    (ref / "model.safetensors").write_bytes(data[:keep])
    assert_refused("truncated", tmp_path / "out", str(ref), n=1)


def test_occupied_output_folder(make_llama, tmp_path):
    _, ref = make_llama()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    assert_refused("already holds files", tmp_path / "out", str(ref), n=1)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_config_and_weights_disagree(make_llama, tmp_path):
    _, ref = make_llama()
    hf = json.loads((ref / "config.json").read_text())
    for entry, value, message in (
        ("vocab_size", 98, "shape"),
        ("intermediate_size", 57, "shape"),
        ("num_hidden_layers", 4, "does not have"),
        ("num_hidden_layers", 6, "tensors are missing"),
        ("model_type", "mamba", "not supported"),
        ("hidden_act", "gelu", "hidden_act"),
        ("tie_word_embeddings", True, "tied"),
    ):
        (ref / "config.json").write_text(json.dumps({**hf, entry: value}))
        assert_refused(message, tmp_path / "out", str(ref), layers="last:1")


def test_arguments_are_checked_without_torch():
    code = (
        "import sys; from inheritune_lit import SliceArgs, UserError\n"
        "args = SliceArgs('openllama-3b', layers='0-2', parts='attn, mlp', out_dir='out')\n"
        "print(args.inherited_parts, args.out_dir.name)\n"
        "for wrong in ({}, {'n': 0}, {'n': 1, 'layers': 'last'}, {'n': 1, 'parts': 'heads'}, {'init': 'stack'}):\n"
        "    try: SliceArgs('openllama-3b', **wrong)\n"
        "    except UserError as error: print(str(error).partition(';')[0])\n"
        "print([name for name in ('torch', 'numpy', 'litgpt') if name in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    assert shown[0] == "('attn', 'mlp') out"
    assert len(shown) == 7
    assert shown[-1] == "[]"


def test_what_a_slice_returns(make_llama, tmp_path):
    _, ref = make_llama()
    result = slice_model(SliceArgs(str(ref), layers="3,1", out_dir=tmp_path / "out"))
    state, manifest = load_state(result.folder), read_manifest(result.folder)
    plan = result.plan
    assert (plan.layers, plan.config.n_layer, result.dry_run) == ([3, 1], 2, False)
    assert plan.parameters() == sum(tensor.numel() for tensor in state.values()) == manifest["parameters"]["total"]
    assert plan.nbytes == sum(tensor.nbytes for tensor in state.values())
    assert plan.sources() == manifest["tensors"]
    assert str(result).splitlines()[1] == f"student   {plan.name}: 2 layers, init inherit, from layers 3,1"
