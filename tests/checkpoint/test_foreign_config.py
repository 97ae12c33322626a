"""Configurations of checkpoint folders that others made: read as transformers reads them, or refused in one line."""

import json

import pytest
import torch
import transformers
import yaml
from foreign import TOKENS_BT, edit, logits_of, refused, slice_of

from inheritune_lit.checkpoint.architectures.table import ARCHITECTURES
from inheritune_lit.checkpoint.args import ExportArgs
from inheritune_lit.checkpoint.export import export
from inheritune_lit.checkpoint.folder import copy_files
from inheritune_lit.errors import UserError
from inheritune_lit.model.load import load_model


@pytest.mark.parametrize(
    "change",
    [
        {"n_head": 0},
        {"n_layer": 10**9},
        {"n_layer": 0},
        {"n_layer": True},
        {"n_layer": "2"},
        {"n_embd": -32},
        {"n_query_groups": 3},
        {"padding_multiple": 0},
        {"n_expert": 10**9, "mlp_class_name": "LLaMAMoE"},
        {"n_expert": -1},
        {"norm_class_name": "Nope"},
        {"mlp_class_name": "GPT"},
        {"norm_eps": float("nan")},
        {"norm_eps": "small"},
        {"norm_eps": None},
        {"rotary_percentage": 1e308},
        {"rope_base": []},
        {"rope_base": float("inf")},
        {"hf_config": "x"},
        {"sliding_window_size": 10**9, "sliding_window_indices": {}},
        {"name": None},
        {"unknown": 1},
        {"learned_positions": {}},
        {"rope_adjustments": {"factor": "x"}},
        {"latent_attention": {}},
    ],
    ids=str,
)
def test_model_configs_of_no_model(make_llama, tmp_path, change):
    lit = slice_of(make_llama()[1], tmp_path / "lit")
    path = lit / "model_config.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | change))
    for call in (lambda: load_model(lit), lambda: export(ExportArgs(lit, tmp_path / "hf"))):
        refused(call, str(lit))


@pytest.mark.parametrize("text", ["[" * 5000 + "]" * 5000, "", "- 1", "a: &a [*a]", "1: 2", "!!python/name:os.x x"])
def test_model_configs_that_are_something_else(make_llama, tmp_path, text):
    lit = slice_of(make_llama()[1], tmp_path / "lit")
    (lit / "model_config.yaml").write_text(text)
    refused(lambda: load_model(lit), "model_config.yaml")


def test_numbers_of_layers_have_a_bound(make_llama, tmp_path):
    _, ref = make_llama()
    for layers in (10**9, 60_000, 49_000):
        edit(ref, num_hidden_layers=layers)
        refused(lambda: slice_of(ref, tmp_path / "out"), f"{layers:,}" if layers != 49_000 else "missing")


FULL = {"vocab_size": 64, "hidden_size": 32, "n_embd": 32, "num_attention_heads": 4, "n_head": 4, "head_dim": 8}
FULL |= {"num_hidden_layers": 3, "n_layer": 3, "num_kv_heads": 4, "num_local_experts": 4, "num_experts": 4}
ONCE = {each.model_type: each for each in ARCHITECTURES}


@pytest.mark.parametrize("kind", ONCE)
def test_missing_and_null_entries_are_as_transformers_has_them(kind):
    """What transformers makes of a configuration without an entry says to us what that configuration itself does."""
    architecture, config_class = ONCE[kind], transformers.CONFIG_MAPPING[kind]
    names = set(config_class().to_dict())
    given = {key: value for key, value in FULL.items() if key in names} | {"norm_topk_prob": True}
    whole = json.loads(config_class(**given).to_json_string(use_diff=False)) | {"use_sliding_window": False}
    keys = {entry.key for entry in architecture.entries.values()} | set(architecture.defaults) | set(architecture.fixed)
    for key in sorted(keys & set(whole)):
        for value in (..., None):
            changed = {name: each for name, each in (whole | {key: value}).items() if each is not ...}
            try:
                theirs = config_class.from_dict({name: each for name, each in changed.items() if name != "model_type"})
                complete = json.loads(theirs.to_json_string(use_diff=False)) | {"use_sliding_window": False}
            except Exception:
                continue
            if complete.get(key, 0) is None and whole[key] is not None and key not in ("sliding_window",):
                continue  # and cannot run it
            try:
                made, wanted = (
                    architecture.config_class(
                        name=architecture.litgpt_name, padded_vocab_size=64, **architecture.to_lit(each)
                    )
                    for each in (changed, complete)
                )
            except (UserError, AssertionError):
                continue  # there is no such model
            assert made == wanted, (key, value)


@pytest.mark.parametrize(
    ("entries", "stays"),
    [
        ({"rope_theta": None, "rope_parameters": ...}, True),
        ({"rope_parameters": {"rope_theta": None, "rope_type": "default"}}, True),
        ({"rope_parameters": {"rope_theta": 10000.0, "rope_type": None}}, True),
        ({"rope_parameters": ..., "rope_theta": 10000, "rope_scaling": {"type": "default"}}, True),
        ({"head_dim": None, "num_key_value_heads": 2, "partial_rotary_factor": None}, True),
        ({"initializer_range": None, "attention_bias": None, "tie_word_embeddings": None}, True),
        ({"quantization_config": None, "auto_map": None, "layer_types": None}, True),
        ({"layer_types": ["full_attention"] * 5}, True),
        ({"layer_types": ["full_attention"] * 4}, False),
        ({"layer_types": ["full_attention"] * 4 + ["sliding_attention"]}, False),
        ({"num_hidden_layers": "5"}, False),
        ({"rms_norm_eps": "1e-6"}, False),
        ({"rope_parameters": {"rope_theta": "10000"}}, False),
        ({"rope_parameters": {"rope_type": ["llama3"]}}, False),
        ({"rope_parameters": {"rope_type": "linear", "factor": None}}, False),
        ({"num_key_value_heads": "2"}, False),
        ({"head_dim": 8.0}, False),
        ({"hidden_act": None}, True),
        ({"hidden_act": ["silu"]}, False),
    ],
    ids=str,
)
@pytest.mark.parametrize("init", ["inherit", "random"])
def test_quirks_of_a_llama(make_llama, tmp_path, entries, stays, init):
    model, ref = make_llama()
    edit(ref, **entries)
    if not stays:
        return refused(lambda: slice_of(ref, tmp_path / "out", init=init), "config.json")
    out = slice_of(ref, tmp_path / "out", n=5, init=init)
    if init == "inherit":
        torch.testing.assert_close(load_model(out)(TOKENS_BT), logits_of(model), rtol=1e-3, atol=1e-4)


def test_what_is_gone_is_not_written(make_llama, tmp_path):
    _, ref = make_llama()
    gone = {"auto_map": {"AutoConfig": "own.Config"}, "custom_pipelines": {"x": {"impl": "own.Pipe"}}}
    gone |= {
        "per_layer": [0, 1, 2, 3, 4],
        "max_window_layers": 5,
        "_name_or_path": "/home/x",
        "vision_config": {"a": 1},
    }
    gone |= {"n_layer": 5, "num_layers": 5, "attn_pdrop": None, "layer_types": ["full_attention"] * 5}
    edit(ref, **gone, eos_token_id=[1, 2], bos_token_id=None, use_cache=True)
    (ref / "tokenizer_config.json").write_text(json.dumps({"a": 1, "auto_map": {"AutoTokenizer": ["own.T", None]}}))
    out = slice_of(ref, tmp_path / "out", n=2)
    export(ExportArgs(out, tmp_path / "hf"))
    copy_files(ref, tmp_path, ("config.json",))  # as into a run's final folder
    assert "auto_map" not in json.loads((tmp_path / "config.json").read_text())
    for folder in (out, tmp_path / "hf"):
        hf = json.loads((folder / "config.json").read_text())
        assert not hf.keys() & gone.keys() and hf["eos_token_id"] == [1, 2] and hf["bos_token_id"] is None
        assert json.loads((folder / "tokenizer_config.json").read_text()) == {"a": 1}
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", trust_remote_code=True)
    assert len(model.model.layers) == 2
