"""Files of torch.save on a hub: only the storages that hold inherited tensors are fetched."""

import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hub_fixtures import expect_same
from hub_server import digest
from safetensors.torch import load_file

from inheritune_lit.checkpoint import remote_files as ranged
from inheritune_lit.errors import UserError
from inheritune_lit.inherit.args import SliceArgs
from inheritune_lit.inherit.slice import slice_model
from inheritune_lit.io.manifest import read_manifest

OVERHEAD = 22_000
"""State dict, directory and record headers of these models, at most, in bytes."""


def as_bin(ref: Path, shard_of: Callable[[str], str] | None = None, **options) -> dict[str, torch.Tensor]:
    """Replace a folder's safetensors file by one of torch.save, or several."""
    state = load_file(ref / "model.safetensors")
    (ref / "model.safetensors").unlink()
    if shard_of is None:
        torch.save(state, ref / "pytorch_model.bin", **options)
        return state
    weight_map = {name: f"pytorch_model-{shard_of(name)}.bin" for name in state}
    for file in set(weight_map.values()):
        torch.save({name: tensor for name, tensor in state.items() if weight_map[name] == file}, ref / file, **options)
    (ref / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return state


def kept_bytes(state: dict[str, torch.Tensor], layers: tuple[int, ...]) -> int:
    return sum(t.nbytes for n, t in state.items() if ".layers." not in n or int(n.split(".")[2]) in layers)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_single_file(hub, make_llama, tmp_path, small_reads, caplog, dtype):
    caplog.set_level("INFO", "inheritune_lit")
    """As open_llama's repositories are."""
    _, ref = make_llama(hidden_size=128, num_attention_heads=8, dtype=dtype)
    state = as_bin(ref)
    hub.repositories["maker/tiny"] = ref
    out = slice_model(SliceArgs("maker/tiny", layers="3,1", out_dir=tmp_path / "out")).folder
    needed, whole = kept_bytes(state, (3, 1)), (ref / "pytorch_model.bin").stat().st_size
    assert needed < hub.sent() < needed + OVERHEAD < 0.75 * whole
    assert f"{needed / 1e9:.2f} GB of {whole / 1e9:.2f} GB are needed" in caplog.text
    expect_same(out, ref, tmp_path, layers="3,1")
    record = read_manifest(out)["reference"]
    assert record["format"] == "bin"
    assert record["files"] == [
        {
            "path": "pytorch_model.bin",
            "bytes": whole,
            "sha256": digest(ref / "pytorch_model.bin"),
            "fetched_bytes": needed,
        }
    ]
    hub.reads.clear()
    slice_model(SliceArgs("maker/tiny", layers="3,1", out_dir=tmp_path / "again"))
    assert hub.sent() < OVERHEAD
    assert not list((tmp_path / "cache/assets").rglob("probe-*"))


def test_shards(hub, make_neox, tmp_path, small_reads):
    _, ref = make_neox(hidden_size=128)
    state = as_bin(ref, shard_of=lambda name: str(int(name.split(".")[2]) // 2) if ".layers." in name else "x")
    hub.repositories["maker/neox"] = ref
    out = slice_model(SliceArgs("maker/neox", layers="2", out_dir=tmp_path / "out")).folder
    expect_same(out, ref, tmp_path, layers="2")
    assert {file for file, _, _ in hub.reads} == {"pytorch_model-1.bin", "pytorch_model-x.bin"}
    files = read_manifest(out)["reference"]["files"]
    whole = (ref / "pytorch_model-x.bin").stat().st_size
    layer = kept_bytes(state, (2,)) - kept_bytes(state, ())
    # The shard of the embeddings is needed as a whole.
    assert [file["fetched_bytes"] for file in files] == [layer, whole]
    assert hub.sent() < layer + whole + OVERHEAD


def test_interrupted_download_goes_on_where_it_stopped(hub, make_llama, tmp_path, small_reads):
    _, ref = make_llama(hidden_size=128)
    state = as_bin(ref)
    hub.repositories["maker/tiny"] = ref
    hub.fail_after = 70
    with pytest.raises(UserError, match="run the same command again to continue") as caught:
        slice_model(SliceArgs("maker/tiny", n=2, out_dir=tmp_path / "out"))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    kept = next((tmp_path / "cache/assets").rglob("*.incomplete")).stat().st_size
    hub.fail_after = None
    hub.reads.clear()
    out = slice_model(SliceArgs("maker/tiny", n=2, out_dir=tmp_path / "out")).folder
    expect_same(out, ref, tmp_path, n=2)
    assert kept > 8 * 4096
    assert hub.sent() < kept_bytes(state, (0, 1)) - kept + OVERHEAD
    assert not list((tmp_path / "cache/assets").rglob("*.incomplete"))


def test_storages_that_are_shared_or_partly_used(hub, make_llama, tmp_path, small_reads):
    """A tied head, and tensors that are rows of one larger tensor."""
    _, ref = make_llama(hidden_size=128, tie_word_embeddings=True)
    state = load_file(ref / "model.safetensors")
    names = [name for name in state if ".layers.2.mlp.gate" in name or ".layers.2.mlp.up" in name]
    joined = torch.cat([state[name] for name in names])
    state |= dict(zip(names, joined.split(56), strict=True))
    (ref / "model.safetensors").unlink()
    torch.save({**state, "lm_head.weight": state["model.embed_tokens.weight"]}, ref / "pytorch_model.bin")
    hub.repositories["maker/tiny"] = ref
    out = slice_model(SliceArgs("maker/tiny", layers="2", out_dir=tmp_path / "out")).folder
    assert hub.sent() < kept_bytes(state, (2,)) + OVERHEAD
    expect_same(out, ref, tmp_path, layers="2")


@pytest.mark.parametrize("kind", ["legacy", "views"])
def test_files_without_ranges_are_fetched_whole(hub, make_llama, tmp_path, kind):
    _, ref = make_llama()
    state = as_bin(ref, _use_new_zipfile_serialization=kind != "legacy")
    if kind == "views":
        state = {name: tensor.mT.contiguous().mT if tensor.ndim == 2 else tensor for name, tensor in state.items()}
        torch.save(state, ref / "pytorch_model.bin")
    hub.repositories["maker/tiny"] = ref
    out = slice_model(SliceArgs("maker/tiny", n=1, out_dir=tmp_path / "out")).folder
    expect_same(out, ref, tmp_path, n=1)
    assert list((tmp_path / "cache/hub").rglob("pytorch_model.bin"))


class Payload:
    """Runs a command when it is unpickled."""

    def __init__(self, flag: Path) -> None:
        self.flag = flag

    def __reduce__(self):
        return (Path.touch, (self.flag,))


def test_code_in_the_pickle_is_refused_and_not_run(hub, make_llama, tmp_path, small_reads):
    _, ref = make_llama(hidden_size=128)
    state = as_bin(ref)
    torch.save({**state, "evil": Payload(tmp_path / "ran")}, ref / "pytorch_model.bin")
    hub.repositories["maker/tiny"] = ref
    with pytest.raises(UserError, match=r"^pytorch_model.bin holds Python objects.*use safetensors$"):
        slice_model(SliceArgs("maker/tiny", n=1, out_dir=tmp_path / "out"))
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "out").exists()
    assert hub.sent() < OVERHEAD


def rewrite(path: Path, change: Callable[[str, bytes], bytes]) -> None:
    """Write an archive's records again."""
    with zipfile.ZipFile(path) as old:
        records = [(info.filename, old.read(info)) for info in old.infolist()]
    with zipfile.ZipFile(path, "w") as new:
        for name, data in records:
            new.writestr(name, change(name, data))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: os.truncate(path, path.stat().st_size - 3000), "pytorch_model.bin"),
        (lambda path: rewrite(path, lambda name, data: data[:-8] if "/data/" in name else data), "disagree"),
        (lambda path: rewrite(path, lambda name, data: data[::-1] if name.endswith("data.pkl") else data), "cannot be"),
        (lambda path: path.write_bytes(path.read_bytes().replace(b"PK\1\2", b"PK\1\3")), "damaged"),
    ],
    ids=["truncated", "short-storages", "no-pickle", "bad-directory"],
)
def test_damaged_files(hub, make_llama, tmp_path, small_reads, damage, message):
    _, ref = make_llama(hidden_size=64)
    as_bin(ref)
    damage(ref / "pytorch_model.bin")
    hub.repositories["maker/tiny"] = ref
    with pytest.raises(UserError, match=message) as caught:
        slice_model(SliceArgs("maker/tiny", n=1, out_dir=tmp_path / "out"))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_an_archive_that_torch_did_not_lay_out(hub, make_llama, tmp_path, small_reads):
    """Written again by zipfile: other headers, no alignment."""
    _, ref = make_llama(hidden_size=64)
    state = as_bin(ref)
    rewrite(ref / "pytorch_model.bin", lambda name, data: data)
    hub.repositories["maker/tiny"] = ref
    out = slice_model(SliceArgs("maker/tiny", n=1, out_dir=tmp_path / "out")).folder
    assert hub.sent() < kept_bytes(state, (0,)) + OVERHEAD
    expect_same(out, ref, tmp_path, n=1)


def test_offsets_beyond_4_gb_are_those_of_torch(tmp_path, monkeypatch):
    """OpenLLaMA-3B's file has 6.9 GB; here most of the bytes are a hole."""
    sizes = {"a": 2_200_000_000, "b": 7, "c": 2_300_000_000, "d": 1000}
    path = tmp_path / "pytorch_model.bin"
    with torch.serialization.skip_data():
        torch.save({name: torch.empty(size, dtype=torch.float16) for name, size in sizes.items()}, path)
    assert path.stat().st_size > 9_000_000_000

    def read_range(url: str, start: int, end: int) -> bytes:
        with open(url, "rb") as file:
            return os.pread(file.fileno(), end - start, start)

    monkeypatch.setattr(ranged, "read_range", read_range)
    remote = ranged.open_torch_file(str(path), path.name, path.stat().st_size, tmp_path)
    remote.choose(["b", "c", "d"])
    reader = torch._C.PyTorchFileReader(str(path))
    for number, (name, size) in enumerate(sizes.items()):
        if name in remote.chosen:
            begin = reader.get_record_offset(f"data/{number}")
            assert (remote.chosen[name].begin, remote.chosen[name].end) == (begin, begin + 2 * size)
