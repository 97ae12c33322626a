"""What only a GPU can show: ``python -m pytest -m gpu tests/gpu``. Skipped where there is none."""

from pathlib import Path

import pytest
import torch
from gpu_steps import DEVICE, SHAPE
from tiny import make_checkpoint, make_packed

from inheritune_lit.model.load import load_model

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items):
    lacking = pytest.mark.skipif(DEVICE.type == "cuda" and not torch.cuda.is_available(), reason="needs a CUDA device")
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            item.add_marker(lacking)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory, tokenizer_dir) -> Path:
    """A model with heads of 100, as OpenLLaMA-3B's."""
    folder = tmp_path_factory.mktemp("gpu") / "start"
    make_checkpoint(folder, tokenizer_dir, **SHAPE)
    return folder


@pytest.fixture(scope="session")
def packed(tmp_path_factory, tokenizer_dir) -> Path:
    return make_packed(tmp_path_factory.mktemp("gpu-packed") / "easy", tokenizer_dir)


@pytest.fixture
def build(checkpoint):
    """Makes the checkpoint's model on the CPU, in a type."""

    def build(dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"):
        return load_model(checkpoint, dtype, device)

    return build
