"""What the hub's cache holds works without the hub; what it lacks is named, in one line."""

import json
import shutil
import time

import pytest
from hub_fixtures import expect_same
from hub_server import COMMIT, digest
from huggingface_hub import constants

from inheritune_lit.errors import UserError
from inheritune_lit.inherit.args import SliceArgs
from inheritune_lit.inherit.slice import slice_model
from inheritune_lit.io.manifest import read_manifest

NOWHERE = "http://127.0.0.1:9"


@pytest.fixture(params=["offline", "down"])
def cut_off(request, monkeypatch):
    def cut() -> None:
        if request.param == "offline":
            monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        monkeypatch.setattr(constants, "ENDPOINT", NOWHERE)
        template = NOWHERE + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)

    cut.word = "HF_HUB_OFFLINE is set" if request.param == "offline" else "refused"
    return cut


def fill_cache(hub, ref, tmp_path, **options):
    hub.repositories["maker/tiny"] = ref
    slice_model(SliceArgs("maker/tiny", out_dir=tmp_path / "first", **options))
    return tmp_path / "cache/hub/models--maker--tiny"


@pytest.mark.parametrize("ref_name", ["maker/tiny", "maker/tiny@main", f"maker/tiny@{COMMIT}"])
def test_a_cached_reference(hub, make_llama, tmp_path, cut_off, caplog, ref_name):
    ref = make_llama()[1]
    fill_cache(hub, ref, tmp_path, n=5)
    cut_off()
    start = time.monotonic()
    name, _, commit = ref_name.partition(COMMIT)
    if commit == "" and name.endswith("@"):
        shutil.rmtree(tmp_path / "cache/hub/models--maker--tiny/refs")
    out = slice_model(SliceArgs(ref_name, n=2, out_dir=tmp_path / "out")).folder
    assert time.monotonic() - start < 30
    expect_same(out, ref, tmp_path, n=2)
    source = read_manifest(out)["reference"]
    assert (source["org"], source["name"], source["revision"]) == ("maker", "tiny", COMMIT)
    assert source["files"][0]["sha256"] == digest(ref / "model.safetensors")
    assert not [record for record in caplog.records if record.name.startswith("huggingface_hub")]


def test_only_the_shards_that_are_needed(hub, make_llama, tmp_path, cut_off):
    ref = make_llama(shard_size="40KB")[1]
    cache = fill_cache(hub, ref, tmp_path, n=5)
    index = json.loads((ref / "model.safetensors.index.json").read_text())["weight_map"]
    needed = {file for name, file in index.items() if ".layers." not in name or ".layers.0." in name}
    for file in set(index.values()) - needed:
        (cache / "snapshots" / COMMIT / file).unlink()
    cut_off()
    expect_same(slice_model(SliceArgs("maker/tiny", n=1, out_dir=tmp_path / "out")).folder, ref, tmp_path, n=1)
    with pytest.raises(UserError, match=r"cannot download model-.*safetensors of maker/tiny"):
        slice_model(SliceArgs("maker/tiny", n=5, out_dir=tmp_path / "more"))


def damage(cache, kind):
    snapshot = cache / "snapshots" / COMMIT
    if kind == "blob":
        (snapshot / "model.safetensors").resolve().unlink()
    elif kind == "config":
        (snapshot / "config.json").unlink()
    elif kind == "snapshot":
        shutil.rmtree(snapshot)
    elif kind == "ref":
        (cache / "refs/main").write_text("../../../elsewhere")
    elif kind == "binary ref":
        (cache / "refs/main").write_bytes(b"\xff\xfe\0")
    elif kind == "partial":
        blob = (snapshot / "model.safetensors").resolve()
        blob.rename(blob.with_name(blob.name + ".incomplete"))
    elif kind == "all":
        shutil.rmtree(cache)


DAMAGE = {
    "blob": "cannot download the weights of maker/tiny",
    "config": "cannot download config.json of maker/tiny",
    "snapshot": f"names '{COMMIT}', whose files are gone",
    "ref": "names '../../../elsewhere', whose files are gone",
    "binary ref": "refs/main can't be read",
    "partial": "cannot download the weights of maker/tiny",
    "all": "it is not in the hub's cache",
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_what_is_missing_is_named(hub, make_llama, tmp_path, cut_off, kind):
    cache = fill_cache(hub, make_llama()[1], tmp_path, n=5)
    damage(cache, kind)
    cut_off()
    with pytest.raises(UserError) as caught:
        slice_model(SliceArgs("maker/tiny", n=2, out_dir=tmp_path / "out"))
    message = str(caught.value)
    assert DAMAGE[kind] in message and "\n" not in message
    if kind != "binary ref":
        assert cut_off.word in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("folder", "identity"),
    [
        (f"models--maker--tiny-1b/snapshots/{COMMIT}", ("maker", "tiny-1b", COMMIT)),
        (f"models--gpt2/snapshots/{COMMIT}", ("local", "gpt2", COMMIT)),
        (f"mine/snapshots/{COMMIT}", ("local", COMMIT, None)),
        ("models--maker--tiny/snapshots/mine", ("local", "mine", None)),
    ],
)
def test_a_folder_of_the_cache_keeps_its_name(make_llama, tmp_path, folder, identity):
    shutil.copytree(make_llama()[1], tmp_path / folder)
    (tmp_path / "link").symlink_to(tmp_path / folder)
    for number, ref in enumerate((tmp_path / folder, tmp_path / "link")):
        out = slice_model(SliceArgs(str(ref), n=1, out_dir=tmp_path / f"out-{number}")).folder
        record = read_manifest(out)["reference"]
        assert (record["org"], record["name"], record["revision"]) == identity
