"""References from a hub: what is fetched, what is kept over an interruption, and what goes wrong in one line."""

import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hub_fixtures import expect_same
from hub_server import COMMIT, commit_of, digest
from safetensors.torch import load_file

from inheritune_lit.errors import UserError
from inheritune_lit.inherit.args import SliceArgs
from inheritune_lit.inherit.slice import slice_model
from inheritune_lit.io.manifest import read_manifest


def inherited_bytes(ref: Path, layers: tuple[int, ...]) -> int:
    """Bytes of the inherited tensors of a LLaMA."""
    tensors = {name: tensor for file in ref.glob("*.safetensors") for name, tensor in load_file(file).items()}
    dropped = [name for name in tensors if ".layers." in name and int(name.split(".")[2]) not in layers]
    return sum(tensor.nbytes for name, tensor in tensors.items() if name not in dropped)


def test_single_file_by_ranges(hub, make_llama, tmp_path, caplog):
    caplog.set_level("INFO", "inheritune_lit")
    _, ref = make_llama()
    (ref / "a.safetensors").write_bytes(b"not of the model")
    (ref / "model.onnx").write_bytes(b"nor this")
    hub.repositories["maker/tiny"] = ref
    out = slice_model(SliceArgs("maker/tiny", n=1, out_dir=tmp_path / "out")).folder
    (ref / "a.safetensors").unlink()
    expect_same(out, ref, tmp_path, n=1)
    whole = (ref / "model.safetensors").stat().st_size
    # The first read, of the header, is larger than this tiny file.
    fetched = sum(count for _, start, count in hub.reads if start > 0)
    assert fetched == inherited_bytes(ref, (0,)) < 0.7 * whole
    assert f"{fetched / 1e9:.2f} GB of {whole / 1e9:.2f} GB are needed" in caplog.text
    source = read_manifest(out)["reference"]
    assert (source["source"], source["revision"]) == ("maker/tiny", COMMIT)
    assert source["files"][0]["sha256"] == digest(ref / "model.safetensors")
    assert (source["files"][0]["path"], source["files"][0]["bytes"]) == ("model.safetensors", whole)
    assert read_manifest(out)["reference"]["name"] == "tiny"


def test_sharded_reads_only_shards_and_tensors_that_are_inherited(hub, make_llama, tmp_path, small_reads):
    _, ref = make_llama(shard_size="40KB")
    hub.repositories["maker/tiny"] = ref
    out = slice_model(SliceArgs("maker/tiny", layers="1", out_dir=tmp_path / "out")).folder
    expect_same(out, ref, tmp_path, layers="1")
    index = json.loads((ref / "model.safetensors.index.json").read_text())["weight_map"]
    needed = {file for name, file in index.items() if ".layers." not in name or ".layers.1." in name}
    assert {file for file, _, _ in hub.reads} == needed < set(index.values())


def test_interrupted_download_goes_on_where_it_stopped(hub, make_llama, tmp_path, small_reads):
    _, ref = make_llama(hidden_size=64)
    hub.repositories["maker/tiny"] = ref
    hub.fail_after = 12
    with pytest.raises(UserError, match="run the same command again to continue") as caught:
        slice_model(SliceArgs("maker/tiny", n=2, out_dir=tmp_path / "out"))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    kept = next((tmp_path / "cache/assets").rglob("*.incomplete")).stat().st_size
    hub.fail_after = None
    hub.reads.clear()
    out = slice_model(SliceArgs("maker/tiny", n=2, out_dir=tmp_path / "out")).folder
    expect_same(out, ref, tmp_path, n=2)
    header = 5000
    assert kept > 4 * 4096  # readers run at once: how much of twelve reads was whole differs
    assert hub.sent() < inherited_bytes(ref, (0, 1)) - kept + 2 * header
    assert not list((tmp_path / "cache/assets").rglob("*.incomplete"))


def test_two_processes_fetch_the_same_file_once(hub, make_llama, tmp_path, small_reads):
    _, ref = make_llama()
    hub.repositories["maker/tiny"] = ref
    context = multiprocessing.get_context("fork")
    processes = [
        context.Process(target=slice_model, args=(SliceArgs("maker/tiny", n=1, out_dir=tmp_path / name),))
        for name in ("one", "two")
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    for name in ("one", "two"):
        expect_same(tmp_path / name, ref, tmp_path, n=1)
    header_reads = 2 * 5000
    assert hub.sent() < inherited_bytes(ref, (0,)) + 2 * header_reads


def test_second_slice_of_the_same_layers_reads_no_weights(hub, make_llama, tmp_path, small_reads):
    _, ref = make_llama()
    hub.repositories["maker/tiny"] = ref
    slice_model(SliceArgs("maker/tiny", n=1, out_dir=tmp_path / "one"))
    hub.reads.clear()
    slice_model(SliceArgs("maker/tiny", n=1, out_dir=tmp_path / "two"))
    assert hub.sent() < 0.2 * (ref / "model.safetensors").stat().st_size


def test_dry_run_and_random_read_no_weights(hub, make_llama, tmp_path):
    _, ref = make_llama(dtype=torch.bfloat16)
    hub.repositories["maker/tiny"] = ref
    remote = slice_model(SliceArgs("maker/tiny", n=2, out_dir=tmp_path / "out", dry_run=True))
    local = slice_model(SliceArgs(str(ref), n=2, out_dir=tmp_path / "out", dry_run=True))
    assert str(remote).splitlines()[2:] == str(local).splitlines()[2:]
    slice_model(SliceArgs("maker/tiny", n=2, init="random", out_dir=local.folder))
    assert hub.reads == []


def test_whole_file_goes_through_the_hub_cache(hub, make_llama, tmp_path):
    _, ref = make_llama()
    hub.repositories["maker/tiny"] = ref
    out = slice_model(SliceArgs("maker/tiny", n=5, out_dir=tmp_path / "out")).folder
    expect_same(out, ref, tmp_path, n=5)
    assert list((tmp_path / "cache/hub").rglob("model.safetensors"))


def test_bin_shards(hub, make_neox, tmp_path):
    _, ref = make_neox()
    stored = load_file(ref / "model.safetensors")
    (ref / "model.safetensors").unlink()
    weight_map = {}
    for name in stored:
        layer = name.split(".")[2] if ".layers." in name else "x"
        weight_map[name] = f"pytorch_model-{layer}.bin"
    for file in set(weight_map.values()):
        torch.save({name: tensor for name, tensor in stored.items() if weight_map[name] == file}, ref / file)
    (ref / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    hub.repositories["maker/neox"] = ref
    out = slice_model(SliceArgs("maker/neox", layers="2", out_dir=tmp_path / "out")).folder
    expect_same(out, ref, tmp_path, layers="2")
    assert {file for file, _, _ in hub.reads} == {"pytorch_model-2.bin", "pytorch_model-x.bin"}


def test_errors_in_one_line(hub, make_llama, tmp_path):
    _, ref = make_llama()
    hub.repositories["maker/tiny"] = ref
    hub.repositories["maker/none"] = tmp_path / "none"
    hub.repositories["maker/lora"] = tmp_path / "lora"
    (tmp_path / "none").mkdir()
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "adapter_config.json").write_text("{}")
    hub.gated.add("meta-llama/Llama-2-7b-hf")
    for name, message in (
        ("maker/absent", "no public hub repository"),
        ("maker/none", "no config.json"),
        ("maker/lora", "maker/lora/adapter_config.json belongs to an adapter, not to a whole model: merge it"),
        ("llama2-7b", "gated: ask for access at https://huggingface.co/meta-llama/Llama-2-7b-hf"),
        ("maker/bad name", "not a hub repository"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            slice_model(SliceArgs(name, n=1, out_dir=tmp_path / "out"))
        assert "\n" not in str(caught.value)
    hub.ranges = False
    with pytest.raises(UserError, match="download the repository"):
        slice_model(SliceArgs("maker/tiny", n=1, out_dir=tmp_path / "out"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").touch()
    hub.ranges = True
    hub.reads.clear()
    with pytest.raises(UserError, match="already holds"):
        slice_model(SliceArgs("maker/tiny", n=1, out_dir=tmp_path / "out"))
    assert hub.reads == []


def test_no_connection(hub, make_llama, tmp_path, monkeypatch):
    """The API does not answer; or it does, and the files don't (huggingface_hub 1.x then raises a RuntimeError)."""
    from huggingface_hub import constants

    hub.repositories["maker/tiny"] = make_llama()[1]
    nowhere = "http://127.0.0.1:9"
    for name, value in (
        ("ENDPOINT", nowhere),
        ("HUGGINGFACE_CO_URL_TEMPLATE", nowhere + "/{repo_id}/resolve/{revision}/{filename}"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(constants, name, value)
            with pytest.raises(UserError, match="cannot download maker/tiny") as caught:
                slice_model(SliceArgs("maker/tiny", n=1, out_dir=tmp_path / "out"))
            assert "\n" not in str(caught.value)


def test_environment_variables(hub, make_llama, tmp_path):
    """HF_ENDPOINT and HF_HOME, in a process of its own."""
    hub.repositories["maker/tiny"] = make_llama()[1]
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-m", "inheritune_lit", "slice", "--ref", "maker/tiny", "--n", "1"]
    subprocess.run([*command, "--out_dir", str(tmp_path / "out")], check=True, env=environment)
    assert (tmp_path / "out/lit_model.pth").is_file()
    assert list((tmp_path / "home/assets").rglob("*.safetensors"))


def test_a_revision_is_fetched_and_recorded(hub, make_llama, tmp_path):
    main, old = make_llama(name="main")[1], make_llama(name="old", seed=1)[1]
    (old / "additional_chat_templates").mkdir()
    (old / "additional_chat_templates/tool_use.jinja").write_text("{{ tools }}")
    hub.repositories |= {"maker/tiny": main, "maker/tiny@v1": old, "maker/tiny@refs/pr/2": old}
    hub.repositories |= {"HuggingFaceTB/SmolLM2-135M": main, "HuggingFaceTB/SmolLM2-135M@v1": old}
    commit = commit_of("maker/tiny@v1")
    for number, (ref, folder, sha) in enumerate(
        [
            ("maker/tiny", main, COMMIT),
            ("maker/tiny@main", main, COMMIT),
            ("maker/tiny@v1", old, commit),
            (f"maker/tiny@{commit}", old, commit),
            ("maker/tiny@refs/pr/2", old, commit_of("maker/tiny@refs/pr/2")),
            ("smollm2-135m@v1", old, commit_of("HuggingFaceTB/SmolLM2-135M@v1")),
        ]
    ):
        out = slice_model(SliceArgs(ref, n=1, out_dir=tmp_path / f"out-{number}")).folder
        expect_same(out, folder, tmp_path, n=1)
        record = read_manifest(out)["reference"]
        assert record["revision"] == sha
        assert record["source"] == ref.replace("smollm2-135m", "HuggingFaceTB/SmolLM2-135M")
        assert record["name"] == ("SmolLM2-135M" if "smollm2" in ref else "tiny")
        assert (out / "additional_chat_templates/tool_use.jinja").is_file() == (folder is old)


def test_revisions_that_are_not_there(hub, make_llama, tmp_path):
    hub.repositories["maker/tiny"] = make_llama()[1]
    for ref, message in (
        ("maker/tiny@v9", "maker/tiny has no such revision"),
        ("maker/tiny@", "names no revision"),
        ("tiny@v1", "unknown reference 'tiny'"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            slice_model(SliceArgs(ref, n=1, out_dir=tmp_path / "out"))
        assert "\n" not in str(caught.value)
