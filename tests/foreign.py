"""What the tests of checkpoint folders that others made have in common."""

import json
from pathlib import Path

import pytest
import torch

from inheritune_lit.errors import UserError
from inheritune_lit.inherit.args import SliceArgs
from inheritune_lit.inherit.slice import slice_model

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
