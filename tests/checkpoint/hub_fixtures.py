"""A hub to fetch from, and what a slice of its models has to be."""

from pathlib import Path

import pytest
import torch
from hub_server import running_hub

from inheritune_lit.checkpoint import remote_files as ranged
from inheritune_lit.inherit.args import SliceArgs
from inheritune_lit.inherit.slice import slice_model
from inheritune_lit.model.load import load_state


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with running_hub(tmp_path / "cache", monkeypatch) as hub:
        yield hub


@pytest.fixture
def small_reads(monkeypatch):
    """Reads small enough that a tiny file takes many."""
    monkeypatch.setattr(ranged, "FIRST_READ", 512)
    monkeypatch.setattr(ranged, "_CHUNK_BYTES", 4096)


def expect_same(out: Path, ref: Path, tmp_path: Path, **options) -> None:
    expected = load_state(slice_model(SliceArgs(str(ref), out_dir=tmp_path / f"expected-{out.name}", **options)).folder)
    found = load_state(out)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
