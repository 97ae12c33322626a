"""Weights of a run as litgpt checkpoints: the newest, the best, the final."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from inheritune_lit.checkpoint.folder import CONFIG_FILES, TOKENIZER_FILES, WEIGHTS, copy_files
from inheritune_lit.checkpoint.manifest import read_manifest, write_manifest
from inheritune_lit.checkpoint.output import new_folder
from inheritune_lit.checkpoint.pieces import CHUNK_BYTES
from inheritune_lit.checkpoint.torch_writer import write_torch_checkpoint
from inheritune_lit.checkpoint.weights import TensorSpec

BEST = "best"
_STEP = re.compile(r"^step-(\d{8})$")


def write_checkpoint(folder: Path, initial_dir: Path, state: dict[str, torch.Tensor], record: dict[str, Any]) -> None:
    """Write a litgpt checkpoint, tensor by tensor from whatever device they are on.

    The initial checkpoint's configuration and tokenizer travel along; its manifest is kept as ``parent``.

    Args:
        folder: the new folder.
        initial_dir: the checkpoint that the run started from.
        state: the model's state dict; tensors that share their storage do so in the file.
        record: what the manifest says.
    """
    first: dict[int, str] = {}
    aliases = {
        name: first[tensor.data_ptr()]
        for name, tensor in state.items()
        if first.setdefault(tensor.data_ptr(), name) != name
    }
    specs = {
        name: TensorSpec(tuple(tensor.shape), tensor.dtype) for name, tensor in state.items() if name not in aliases
    }
    with new_folder(folder) as staging:
        write_torch_checkpoint(staging / WEIGHTS, specs, aliases, lambda name: _chunks(state[name]))
        copy_files(initial_dir, staging, (*CONFIG_FILES, *TOKENIZER_FILES))
        write_manifest(staging, "checkpoint", {**record, "parent": read_manifest(initial_dir)})


def replace_checkpoint(folder: Path, initial_dir: Path, state: dict[str, torch.Tensor], record: dict[str, Any]) -> None:
    """``write_checkpoint`` in place of an older one, which is there until the new one is whole."""
    new = folder.with_name(f"{folder.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    write_checkpoint(new, initial_dir, state, record)
    shutil.rmtree(folder, ignore_errors=True)
    new.rename(folder)


def step_folder(run_dir: Path, step: int) -> Path:
    """Where the weights of a step are kept, named as litgpt names them."""
    return run_dir / f"step-{step:08}"


def drop_old_checkpoints(run_dir: Path, keep_last: int) -> None:
    """Remove all but the newest ``step-*`` folders."""
    for folder in sorted(folder for folder in run_dir.iterdir() if _STEP.match(folder.name))[:-keep_last]:
        shutil.rmtree(folder)


def _chunks(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    flat = tensor.detach().contiguous().view(-1)
    for part in flat.split(CHUNK_BYTES // flat.element_size()):
        yield part.cpu()
