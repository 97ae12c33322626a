"""Weights of checkpoint folders that others made: taken as transformers takes them, or refused in one line."""

import json
import zipfile

import pytest
import torch
import transformers
from foreign import POINTER, TOKENS_BT, edit, logits_of, refused, slice_of
from random_models import build_llama
from safetensors.torch import load_file, save_file, save_model

from inheritune_lit.checkpoint.args import ExportArgs
from inheritune_lit.checkpoint.export import export
from inheritune_lit.inherit.load import load_reference
from inheritune_lit.model.load import load_model


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
