"""Checkpoint folders that others made: what is in them is taken as transformers takes it, or refused in one line."""

import json
import os
import zipfile
from pathlib import Path

import pytest
import torch
import transformers
import yaml
from random_models import build_llama
from safetensors.torch import load_file, save_file, save_model

from inheritune_lit.checkpoint.architectures.table import ARCHITECTURES
from inheritune_lit.checkpoint.args import ExportArgs
from inheritune_lit.checkpoint.config import Config
from inheritune_lit.checkpoint.export import export
from inheritune_lit.checkpoint.folder import copy_files
from inheritune_lit.errors import UserError
from inheritune_lit.inherit.args import SliceArgs
from inheritune_lit.inherit.load import load_reference
from inheritune_lit.inherit.slice import slice_model
from inheritune_lit.model.load import load_model

TOKENS_BT = torch.arange(13).reshape(1, 13) * 5 % 61
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 269060552\n"


def refused(call, *words: str) -> None:
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def slice_of(ref: Path, out: Path, **options) -> Path:
    return slice_model(SliceArgs(str(ref), out_dir=out, **{"n": 1, **options})).folder


def edit(folder: Path, **entries) -> None:
    path = folder / "config.json"
    kept = {key: value for key, value in (json.loads(path.read_text()) | entries).items() if value is not ...}
    path.write_text(json.dumps(kept))


@torch.no_grad()
def logits_of(model) -> torch.Tensor:
    return model(TOKENS_BT, use_cache=False).logits


# Weights


def test_of_several_sets_of_weights_that_of_transformers_is_taken(make_llama, tmp_path):
    sets = {name: build_llama(seed=seed) for seed, name in enumerate(("one", "index", "bin", "bin-index"))}
    ref = tmp_path / "ref"
    sets["index"].save_pretrained(ref, max_shard_size="20KB")
    for name, options in (("bin-index", "index"), ("bin", "one")):
        state = sets[name].state_dict()
        files = ["pytorch_model.bin"] if options == "one" else ["pytorch_model-00001-of-00001.bin"]
        torch.save(state, ref / files[0])
        if options == "index":
            (ref / "pytorch_model.bin.index.json").write_text(
                json.dumps({"weight_map": dict.fromkeys(state, files[0])})
            )
    save_file(sets["one"].state_dict(), ref / "model.safetensors", {"format": "pt"})
    for name, file in (("one", "model.safetensors"), ("index", "model.safetensors.index.json"), ("bin", "*model.bin")):
        expected = logits_of(sets[name])
        torch.testing.assert_close(load_reference(ref)(TOKENS_BT), expected, rtol=1e-3, atol=1e-4)
        theirs = transformers.AutoModelForCausalLM.from_pretrained(ref).eval()
        torch.testing.assert_close(logits_of(theirs), expected, rtol=1e-3, atol=1e-4)
        for path in ref.glob(file):
            path.unlink()
    torch.testing.assert_close(load_reference(ref)(TOKENS_BT), logits_of(sets["bin-index"]), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("stored", ["head", "embedding", "both"])
@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_a_tied_pair_under_either_name(make_llama, tmp_path, stored, suffix):
    model, ref = make_llama(tie_word_embeddings=True)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name, kept in (("lm_head.weight", "head"), ("model.embed_tokens.weight", "embedding")):
        if stored not in (kept, "both"):
            del state[name]
    (ref / "model.safetensors").unlink()
    if suffix == "bin":
        torch.save(state, ref / "pytorch_model.bin")
    else:
        save_file(state, ref / "model.safetensors", {"format": "pt"})
    out = slice_of(ref, tmp_path / "out", n=5)
    torch.testing.assert_close(load_model(out)(TOKENS_BT), logits_of(model), rtol=1e-3, atol=1e-4)


def test_save_model_of_safetensors(make_llama, tmp_path):
    model, ref = make_llama(tie_word_embeddings=True)
    save_model(model, str(ref / "model.safetensors"), metadata={"format": "pt"})
    torch.testing.assert_close(load_reference(ref)(TOKENS_BT), logits_of(model), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("wrapper", ["_orig_mod.", "module.", "module._orig_mod.", "_forward_module.", "inner"])
@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_wrapped_names(make_llama, tmp_path, wrapper, suffix):
    model, ref = make_llama()
    wrapped = {
        name.replace("mlp.", "_checkpoint_wrapped_module.mlp.") if wrapper == "inner" else wrapper + name: tensor
        for name, tensor in model.named_parameters()
    }
    (ref / "model.safetensors").unlink()
    if suffix == "bin":
        torch.save(wrapped, ref / "pytorch_model.bin")  # of parameters, which want a gradient
    else:
        save_file({name: tensor.detach() for name, tensor in wrapped.items()}, ref / "model.safetensors")
    out = slice_of(ref, tmp_path / "out", n=5)
    torch.testing.assert_close(load_model(out)(TOKENS_BT), logits_of(model), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("entries", "method"),
    [
        ({"quantization_config": {"quant_method": "awq"}}, "awq"),
        ({"quantization_config": {"load_in_4bit": True}}, "quantised"),
        ({"quantization_config": ["odd"]}, "quantised"),
        ({"quantization": {"group_size": 64, "bits": 4, "mode": "affine"}}, "affine"),
        ({"compression_config": {"quant_method": "compressed-tensors"}}, "compressed-tensors"),
    ],
)
def test_quantised_by_configuration(make_llama, tmp_path, entries, method):
    _, ref = make_llama()
    edit(ref, **entries)
    refused(lambda: slice_of(ref, tmp_path / "out"), "quantised", method)
    edit(ref, **dict.fromkeys(entries))  # null: there is none
    assert "quantization_config" not in json.loads((slice_of(ref, tmp_path / "out") / "config.json").read_text())


@pytest.mark.parametrize(
    "part",
    ["qweight", "weight_scale", "weight_scale_inv", "weight.absmax", "SCB", "weight.quant_state.nf4"],
)
def test_quantised_by_names(make_llama, tmp_path, part):
    _, ref = make_llama()
    extra = {f"model.layers.0.mlp.up_proj.{part}": torch.ones(3)}
    save_file(load_file(ref / "model.safetensors") | extra, ref / "model.safetensors")
    refused(lambda: slice_of(ref, tmp_path / "out"), "quantised", part)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.uint8, torch.int8, torch.int32])
def test_quantised_by_dtype(make_llama, tmp_path, dtype):
    _, ref = make_llama()
    stored = load_file(ref / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    save_file(stored | {name: stored[name].to(dtype)}, ref / "model.safetensors")
    refused(lambda: slice_of(ref, tmp_path / "out"), "quantised")


@pytest.mark.parametrize(
    "file",
    (
        *("model.safetensors", "pytorch_model.bin", "config.json", "tokenizer.json", "tokenizer.model", "merges.txt"),
        *("model.safetensors.index.json", "generation_config.json", "chat_template.jinja"),
    ),
)
def test_git_lfs_pointers(make_llama, tmp_path, file):
    _, ref = make_llama()
    if "model." in file and "tokenizer" not in file:
        (ref / "model.safetensors").unlink()
    (ref / file).write_text(POINTER)
    refused(lambda: slice_of(ref, tmp_path / "out"), "Git LFS", file)


def test_a_pointer_that_nobody_reads_is_no_matter(make_llama, tmp_path):
    _, ref = make_llama()
    for name in ("pytorch_model.bin", "tf_model.h5", "README.md"):
        (ref / name).write_text(POINTER)
    slice_of(ref, tmp_path / "out")


def test_adapters(make_llama, tmp_path):
    _, ref = make_llama()
    (ref / "adapter_config.json").write_text("{}")
    refused(lambda: slice_of(ref, tmp_path / "out"), "adapter", "merge")
    (ref / "adapter_config.json").unlink()
    names = {"model.layers.0.self_attn.q_proj.lora_A.default.weight": torch.ones(2, 2)}
    save_file(load_file(ref / "model.safetensors") | names, ref / "model.safetensors")
    refused(lambda: slice_of(ref, tmp_path / "out"), "adapter", "merge")
    only = tmp_path / "only"
    only.mkdir()
    (only / "adapter_model.safetensors").write_bytes(b"")
    refused(lambda: slice_of(only, tmp_path / "out"), "adapter", "merge")
    lit = slice_of(make_llama("other")[1], tmp_path / "lit")
    (lit / "lit_model.pth.lora").write_bytes(b"")
    export(ExportArgs(lit, tmp_path / "hf"))  # litgpt has merged it
    (lit / "lit_model.pth").unlink()
    refused(lambda: export(ExportArgs(lit, tmp_path / "hf2")), "adapter", "merge")


STATES = {
    "list": lambda state: [1],
    "none": lambda state: None,
    "nested none": lambda state: {"model": None},
    "nested number": lambda state: {"model": {"model": 5}},
    "number as name": lambda state: {1: torch.ones(1)},
    "text": lambda state: state | {"lm_head.weight": "x"},
    "sparse": lambda state: state | {"lm_head.weight": state["lm_head.weight"].to_sparse()},
    "csr": lambda state: state | {"lm_head.weight": state["lm_head.weight"].to_sparse_csr()},
    "quantised": lambda state: (
        state | {"lm_head.weight": torch.quantize_per_tensor(state["lm_head.weight"], 0.1, 0, torch.qint8)}
    ),
    "meta": lambda state: state | {"lm_head.weight": state["lm_head.weight"].to("meta")},
    "complex": lambda state: state | {"lm_head.weight": state["lm_head.weight"].to(torch.complex64)},
    "int": lambda state: state | {"lm_head.weight": state["lm_head.weight"].int()},
    "bool": lambda state: state | {"lm_head.weight": state["lm_head.weight"].bool()},
    "float8": lambda state: state | {"lm_head.weight": state["lm_head.weight"].to(torch.float8_e4m3fn)},
    "expanded": lambda state: state | {"lm_head.weight": torch.ones(1, 1).expand(1 << 20, 1 << 20)},
    "scalar": lambda state: state | {"lm_head.weight": torch.tensor(1.0)},
    "twice": lambda state: state | {"_orig_mod.lm_head.weight": state["lm_head.weight"]},
    "empty": lambda state: {},
}


@pytest.mark.parametrize("kind", STATES)
def test_other_things_than_plain_tensors(make_llama, tmp_path, kind):
    lit = slice_of(make_llama()[1], tmp_path / "lit")
    torch.save(STATES[kind](torch.load(lit / "lit_model.pth")), lit / "lit_model.pth")
    refused(lambda: slice_of(lit, tmp_path / "out"), "lit_model.pth" if kind != "empty" else "")
    refused(lambda: export(ExportArgs(lit, tmp_path / "hf")), "lit_model.pth")
    refused(lambda: load_model(lit), "lit_model.pth")


@pytest.mark.parametrize("file", ["lit_model.pth", "pytorch_model.bin"])
@pytest.mark.parametrize("record", ["archive/data.pkl", "archive/data/0", "archive/version"])
def test_compressed_records_are_not_unpacked(make_llama, tmp_path, file, record):
    _, ref = make_llama()
    if file == "lit_model.pth":
        ref = slice_of(ref, tmp_path / "lit")
    else:
        (ref / "model.safetensors").unlink()
    with zipfile.ZipFile(ref / file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(record, bytes(300 << 20))
    refused(lambda: slice_of(ref, tmp_path / "out"), "compressed")


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": ["F32"]},
        {"dtype": None},
        {"shape": None},
        {"shape": "31"},
        {"shape": [True]},
        {"shape": [1e3]},
        {"data_offsets": ["a", "b"]},
        {"data_offsets": [None, None]},
        {"data_offsets": [0]},
        {"data_offsets": [0, 1, 2]},
        {"data_offsets": [0.0, 12416.0]},
        {"data_offsets": {"0": 1}},
        "text",
        None,
    ],
)
def test_types_in_a_header(make_llama, tmp_path, change):
    _, ref = make_llama()
    data = (ref / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    name = next(name for name in header if name != "__metadata__")
    header[name] = header[name] | change if isinstance(change, dict) else change
    text = json.dumps(header).encode()
    (ref / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    refused(lambda: slice_of(ref, tmp_path / "out"), "model.safetensors")


DAMAGE = ["[" * 200_000 + "]" * 200_000, '{"n":' + "9" * 6000 + "}", "null", "[]", '{"weight_map": [1]}', "\ud800", ""]


@pytest.mark.parametrize("text", DAMAGE, ids=range(len(DAMAGE)))
def test_json_that_is_deep_long_or_something_else(make_llama, tmp_path, text):
    for file in ("config.json", "model.safetensors.index.json"):
        _, ref = make_llama(file.replace(".", "-"), shard_size="20KB")
        (ref / file).write_bytes(text.encode("utf-8", "surrogatepass"))
        refused(lambda ref=ref: slice_of(ref, tmp_path / "out"), file)
    encoded = text.encode("utf-8", "surrogatepass")
    for path in ref.glob("model-00001*"):
        path.write_bytes(len(encoded).to_bytes(8, "little") + encoded)
    (ref / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": path.name}}))
    refused(lambda: slice_of(ref, tmp_path / "out"), path.name)


# Configuration


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


# Folders


def test_links_that_lead_outside_are_refused_by_all(make_llama, tmp_path):
    lit = slice_of(make_llama()[1], tmp_path / "lit")
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "a.jinja").write_text("SECRET")
    for link, target in (
        ("chat_template.jinja", secret / "a.jinja"),
        ("added_tokens.json", Path("../secret/a.jinja")),
        ("additional_chat_templates", secret),
        ("inheritune.json", secret / "a.jinja"),
        ("vocab.json", tmp_path / "lit2" / "x"),
        ("notes", Path("notes")),
        ("merges.txt", Path("merges.txt")),
    ):
        (lit / link).unlink(missing_ok=True)
        (lit / link).symlink_to(target)
        calls = (
            lambda: export(ExportArgs(lit, tmp_path / "hf")),
            lambda: load_model(lit),
            lambda: slice_of(lit, tmp_path / "out"),
            lambda: copy_files(lit, secret),
        )
        for call in calls:
            refused(call, "symlink", link)
        (lit / link).unlink()
    (lit / "own.jinja").write_text("{{ messages }}")
    (lit / "chat_template.jinja").symlink_to("own.jinja")
    export(ExportArgs(lit, tmp_path / "hf"))
    assert (tmp_path / "hf/chat_template.jinja").read_text() == "{{ messages }}"
    assert not (tmp_path / "hf/chat_template.jinja").is_symlink()


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "model.safetensors", "generation_config.json"])
def test_pipes_do_not_block(make_llama, tmp_path, file):
    _, ref = make_llama()
    (ref / file).unlink(missing_ok=True)
    os.mkfifo(ref / file)
    refused(lambda: slice_of(ref, tmp_path / "out"), str(ref))


def test_names_from_files_stay_in_their_place(make_llama, tmp_path, monkeypatch, caplog):
    """A name in ``model_config.yaml`` chooses neither another folder nor the front matter of a model card."""
    lit = slice_of(make_llama()[1], tmp_path / "lit")
    path, fields = lit / "model_config.yaml", yaml.safe_load((lit / "model_config.yaml").read_text())
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for name in (5, "../../../evil", "/evil", "a\nlicense: mit\x1b[31m", "..", "", "\udcff", "x" * 500):
        path.write_text(yaml.safe_dump(fields | {"name": str(name), "hf_config": {"org": name, "name": name}}))
        out = slice_model(SliceArgs(str(lit), n=1)).folder
        assert out.resolve().is_relative_to(tmp_path / "here/checkpoints")
        export(ExportArgs(lit, tmp_path / "hf"))
        card = (tmp_path / "hf/README.md").read_text()
        assert "\nlicense" not in card and "\x1b" not in card
        for folder in (out, tmp_path / "hf"):
            os.rename(folder, tmp_path / f"done{len(list(tmp_path.iterdir()))}")


@pytest.mark.parametrize(
    "manifest",
    [
        {"kind": "slice"},
        {"kind": "slice", "reference": None, "layers": None},
        {"kind": "slice", "reference": {"org": 1}, "layers": "x"},
        {"kind": "run", "tokens": "many", "parent": {"kind": "slice"}},
        {"kind": "run", "parent": [1]},
        {
            "kind": "run",
            "tokens": 5,
            "parent": {"kind": "slice", "reference": {"org": "a", "name": "b"}, "layers": [0, 9]},
        },
    ],
)
def test_damaged_lineage(make_llama, tmp_path, manifest):
    lit = slice_of(make_llama()[1], tmp_path / "lit")
    (lit / "inheritune.json").write_text(json.dumps(manifest))
    try:
        export(ExportArgs(lit, tmp_path / "hf"))
    except UserError as error:
        assert "inheritune.json" in str(error)


def test_configurations_of_litgpt_itself_are_read(tmp_path):
    """Every model of litgpt's own table, as litgpt writes it."""
    from litgpt.config import configs
    from litgpt.utils import save_config

    from inheritune_lit.checkpoint.config import load_lit_config

    for entry in configs:
        config = Config(**entry)
        save_config(config, tmp_path)
        assert load_lit_config(tmp_path) == config
