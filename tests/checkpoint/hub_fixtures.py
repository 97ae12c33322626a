"""A hub to fetch from, and what a slice of its models has to be."""

from pathlib import Path

import pytest
import torch
from hub_server import Hub, serve

from inheritune_lit.checkpoint import ranged
from inheritune_lit.inherit.slice import slice_reference
from inheritune_lit.model.load import load_state


@pytest.fixture
def hub(tmp_path, monkeypatch):
    import huggingface_hub

    hub = Hub()
    server = serve(hub)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache/hub"))
    monkeypatch.setattr("huggingface_hub.utils._cache_assets.HF_ASSETS_CACHE", str(tmp_path / "cache/assets"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    yield hub
    server.shutdown()
    server.server_close()


@pytest.fixture
def small_reads(monkeypatch):
    """Reads small enough that a tiny file takes many."""
    monkeypatch.setattr(ranged, "FIRST_READ", 512)
    monkeypatch.setattr(ranged, "_CHUNK_BYTES", 4096)


def expect_same(out: Path, ref: Path, tmp_path: Path, **options) -> None:
    expected = load_state(slice_reference(str(ref), out_dir=tmp_path / f"expected-{out.name}", **options))
    found = load_state(out)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
