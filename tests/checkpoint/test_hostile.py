"""Damaged and hostile sources, full disks, two processes: one clear line, nothing left behind."""

import errno
import json
import multiprocessing
import os
import resource
import signal
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from inheritune_lit.errors import UserError
from inheritune_lit.inherit.args import SliceArgs
from inheritune_lit.inherit.slice import slice_model
from inheritune_lit.io.folders import new_folder
from inheritune_lit.model.load import load_state


def refused(message: str, ref: Path, out: Path, **options) -> None:
    with pytest.raises(UserError, match=message) as caught:
        slice_model(SliceArgs(str(ref), out_dir=out, **{"n": 1, **options}))
    assert "\n" not in str(caught.value)
    left = [path.name for path in out.parent.iterdir() if path.name.startswith((out.name, f".{out.name}"))]
    assert left == []


def write_raw(path: Path, header: object, data: bytes = b"") -> None:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + data)


def entry(shape: list, begin: int, end: int, dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        (b"not json at all", b"", "a safetensors header"),
        ([1, 2], b"", "damaged safetensors header"),
        ({"a": {"dtype": "F32"}}, b"", "damaged safetensors header"),
        ({"a": entry(["x"], 0, 4)}, b"1234", "shape"),
        ({"a": entry([-1], 0, 4)}, b"1234", "shape"),
        ({"a": entry([1], 0, 8)}, b"12345678", "do not fit"),
        ({"a": entry([1], 4, 8)}, b"12345678", "do not fit"),
        ({"a": entry([1], 0, 4), "b": entry([1], 0, 4)}, b"1234", "do not fit"),
        ({"a": entry([1], -4, 0)}, b"1234", "do not fit"),
        ({"a": entry([2], 0, 2, "F8_E4M3")}, b"12", "not supported"),
        ({"a": entry([2], 0, 8)}, b"1234", "truncated"),
        ({"a": entry([1], 0, 4)}, b"12345678", "behind its last tensor"),
    ],
)
def test_headers_that_lie(make_llama, tmp_path, header, data, message):
    _, ref = make_llama()
    write_raw(ref / "model.safetensors", header, data)
    refused(message, ref, tmp_path / "out")


def test_absurd_header_length(make_llama, tmp_path):
    _, ref = make_llama()
    (ref / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 62) + b"{}")
    refused("header length", ref, tmp_path / "out")


def test_indices_that_lie(make_llama, tmp_path):
    _, ref = make_llama(shard_size="20KB")
    path = ref / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    files = sorted(set(index["weight_map"].values()))
    name = next(iter(index["weight_map"]))

    def with_file(file: str) -> None:
        path.write_text(json.dumps({"weight_map": {**index["weight_map"], name: file}}))

    for file, message in (
        ("model-00099-of-00099.safetensors", "missing"),
        ("../model.safetensors", "outside"),
        ("/etc/passwd", "outside"),
        (next(file for file in files if file != index["weight_map"][name]), "does not hold it"),
    ):
        with_file(file)
        refused(message, ref, tmp_path / "out")
    path.write_text("[]")
    refused("as a weight index", ref, tmp_path / "out")
    path.write_text(json.dumps(index))
    (ref / files[-1]).write_bytes((ref / files[-1]).read_bytes()[:-10])
    refused("truncated", ref, tmp_path / "out")
    (ref / files[-1]).unlink()
    refused("missing", ref, tmp_path / "out")


def test_wrong_dtypes(make_llama, tmp_path):
    _, ref = make_llama()
    stored = load_file(ref / "model.safetensors")
    save_file(stored | {"model.norm.weight": stored["model.norm.weight"].to(torch.int8)}, ref / "model.safetensors")
    refused("quantised", ref, tmp_path / "out")
    name = "model.layers.0.self_attn.k_proj.weight"
    save_file(stored | {name: stored[name].half()}, ref / "model.safetensors")
    refused("different dtypes", ref, tmp_path / "out")


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"model_type": "llama"}', '{"model_type": ["llama"]}'])
def test_damaged_config(make_llama, tmp_path, text):
    _, ref = make_llama()
    (ref / "config.json").write_text(text)
    refused("config.json", ref, tmp_path / "out")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_hidden_layers", 0),
        ("num_hidden_layers", "5"),
        ("num_attention_heads", 3),
        ("num_key_value_heads", 3),
        ("hidden_size", 1e9),
        ("vocab_size", None),
        ("rope_parameters", {"rope_type": "yarn", "factor": 2.0}),
        ("rope_parameters", {"rope_type": "linear"}),
        ("rope_parameters", "linear"),
    ],
)
def test_impossible_config(make_llama, tmp_path, key, value):
    _, ref = make_llama()
    hf = json.loads((ref / "config.json").read_text())
    (ref / "config.json").write_text(json.dumps({**hf, "head_dim": None, key: value}))
    refused("config", ref, tmp_path / "out")


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json", "config.json"])
def test_symlink_out_of_the_folder(make_llama, tmp_path, file):
    _, ref = make_llama()
    (ref / "tokenizer.json").write_text("{}")
    (ref / file).rename(tmp_path / "elsewhere")
    (ref / file).symlink_to(tmp_path / "elsewhere")
    refused("symlink", ref, tmp_path / "out")


def test_symlinks_of_the_hub_cache_are_fine(make_llama, tmp_path):
    _, ref = make_llama()
    snapshot, blobs = tmp_path / "models--a--b/snapshots/123", tmp_path / "models--a--b/blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, path in enumerate(sorted(ref.iterdir())):
        path.rename(blobs / str(number))
        (snapshot / path.name).symlink_to(Path("../../blobs") / str(number))
    assert (slice_model(SliceArgs(str(snapshot), n=1, out_dir=tmp_path / "out")).folder / "lit_model.pth").is_file()


@pytest.mark.parametrize("limit", [3_000, 40_000])
def test_file_size_limit(make_llama, tmp_path, limit):
    """The system refuses to let the file grow: in its layout, and in its data."""
    _, ref = make_llama()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        refused("free space", ref, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_disk_full_while_writing(make_llama, tmp_path, monkeypatch):
    _, ref = make_llama()
    write, written = os.pwrite, []

    def pwrite(descriptor, data, offset):
        written.append(len(data))
        if len(written) > 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    refused("No space left on device; free space", ref, tmp_path / "out")
    monkeypatch.undo()
    assert (slice_model(SliceArgs(str(ref), n=1, out_dir=tmp_path / "out")).folder / "lit_model.pth").is_file()


def _die_while_writing(ref: Path, out: Path) -> None:
    write, written = os.pwrite, []

    def pwrite(descriptor, data, offset):
        written.append(offset)
        if len(written) > 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return write(descriptor, data, offset)

    os.pwrite = pwrite
    slice_model(SliceArgs(str(ref), n=1, out_dir=out))


def test_killed_and_run_again(make_llama, tmp_path):
    _, ref = make_llama()
    process = multiprocessing.get_context("fork").Process(target=_die_while_writing, args=(ref, tmp_path / "out"))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    out = slice_model(SliceArgs(str(ref), n=1, out_dir=tmp_path / "out")).folder
    whole = slice_model(SliceArgs(str(ref), n=1, out_dir=tmp_path / "whole")).folder
    assert (out / "lit_model.pth").stat().st_size == (whole / "lit_model.pth").stat().st_size
    assert all(torch.equal(tensor, load_state(whole)[name]) for name, tensor in load_state(out).items())


def _fill(out: Path, text: str, barrier, results) -> None:
    try:
        with new_folder(out) as staging:
            (staging / "file").write_text(text)
            barrier.wait(60)
        results.put("made")
    except UserError as error:
        results.put(str(error))
        barrier.wait(60)


def test_two_processes_write_one_folder(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(2), context.Queue()
    processes = [
        context.Process(target=_fill, args=(tmp_path / "out", text, barrier, results)) for text in ("first", "second")
    ]
    for process in processes:
        process.start()
    outcomes = sorted(results.get(timeout=20) for _ in processes)
    for process in processes:
        process.join()
    assert outcomes[0] == "made"
    assert "is at work on" in outcomes[1]
    assert (tmp_path / "out/file").read_text() in ("first", "second")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
