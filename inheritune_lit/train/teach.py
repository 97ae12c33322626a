"""``inheritune teach``: a teacher's predictions on training data, written once for any number of students."""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.nn import functional as F

from inheritune_lit.data.packed import PackedDataset, content_sha256, load_packed_manifest
from inheritune_lit.errors import UserError
from inheritune_lit.io.folders import check_vacant, explain_full_disk, make_folder, replace_text
from inheritune_lit.io.manifest import write_manifest
from inheritune_lit.io.progress import Progress
from inheritune_lit.model.forward import head_logits
from inheritune_lit.model.gpt import Transformer
from inheritune_lit.train.distillation import open_teacher
from inheritune_lit.train.loss import CHUNK_TOKENS
from inheritune_lit.train.teacher_logits import IDS, KIND, LOGPROBS, id_dtype, open_arrays

_DONE = "done.json"
_SAVE_BLOCKS = 1024


def teach(
    teacher: str,
    data: Path,
    out_dir: Path,
    *,
    max_seq_length: int,
    documents: Literal["packed", "separate"] = "packed",
    top_k: int = 50,
    temperature: float = 1.0,
    dtype: Literal["float16", "float32"] = "float16",
    batch_size: int = 4,
    dry_run: bool = False,
) -> None:
    """Write the likeliest tokens of every position of every training block; the same call continues a killed one.

    The work is done in a hidden folder beside ``out_dir``, which takes its name at the end.

    Args:
        teacher: as ``--ref`` of ``inheritune slice``.
        data: packed data.
        max_seq_length, documents: as the students will be trained.
        temperature: of the softened distribution.
        dtype: of log-probabilities.
        batch_size: blocks a forward pass.
        dry_run: print the plan and stop.

    Raises:
        UserError: bad input, or too little disk.
    """
    _check_numbers(max_seq_length=max_seq_length, top_k=top_k, temperature=temperature, batch_size=batch_size)
    check_vacant(out_dir)
    dataset = PackedDataset(data, "train", max_seq_length, documents)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    weights_dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model = open_teacher(teacher, load_packed_manifest(data)["tokenizer"]["sha256"], max_seq_length, weights_dtype)
    vocabulary = model.gpt.config.padded_vocab_size
    if top_k > vocabulary:
        raise UserError(f"--top_k is {top_k}, the teacher has {vocabulary} tokens; give at most as many")
    settings = {
        "teacher": model.identity,
        "data_sha256": content_sha256(data),
        "documents": documents,
        "blocks": len(dataset),
        "block_size": max_seq_length,
        "vocabulary": vocabulary,
        "top_k": top_k,
        "temperature": temperature,
        "dtype": dtype,
        "computed_in": str(weights_dtype).removeprefix("torch."),
    }
    positions = len(dataset) * max_seq_length
    size = positions * top_k * (id_dtype(vocabulary).itemsize + np.dtype(dtype).itemsize)
    flops = positions * model.flops(max_seq_length)
    print(
        f"teach {model.name}: top {top_k} of {vocabulary:,} tokens for {positions:,} positions, {len(dataset):,} "
        f"blocks\n      {size / 1e9:.2f} GB on disk, {flops:.2e} FLOPs on {device}",
        file=sys.stderr,
        flush=True,
    )
    if dry_run:
        return
    folder = out_dir.parent / f".{out_dir.name}.partial"
    done = _begin(folder, settings, size)
    with explain_full_disk(out_dir):
        _write(folder, settings, model.gpt.to(device), dataset, done, batch_size)
        write_manifest(folder, KIND, {"settings": settings})
        os.replace(folder, out_dir)
        (out_dir / _DONE).unlink()
    print(f"wrote {out_dir}", file=sys.stderr)


def _begin(folder: Path, settings: dict[str, Any], size: int) -> int:
    """Make the working folder, or find how many blocks of the same work it holds.

    Raises:
        UserError: it holds other work, or the disk is too small.
    """
    if (folder / _DONE).is_file():
        found = json.loads((folder / _DONE).read_text())
        if found["settings"] != settings:
            raise UserError(f"{folder} holds unfinished work with other settings; remove it or give another --out_dir")
        return int(found["blocks"])
    shutil.rmtree(folder, ignore_errors=True)
    make_folder(folder.parent, folder.parent)
    free = shutil.disk_usage(folder.parent).free
    if size > free:
        raise UserError(
            f"{folder.parent} needs {size / 1e9:.1f} GB for the teacher's predictions, {free / 1e9:.1f} GB are free; "
            "make room, or give a smaller --top_k"
        )
    folder.mkdir()
    open_arrays(folder, settings, "w+")
    _note_done(folder, settings, 0)
    return 0


def _write(
    folder: Path, settings: dict[str, Any], gpt: Transformer, dataset: PackedDataset, done: int, batch_size: int
) -> None:
    ids, logprobs = open_arrays(folder, settings, "r+")
    device = next(gpt.parameters()).device
    with Progress("teach", len(dataset), "block", done) as progress, torch.no_grad():
        for start in range(done, len(dataset), batch_size):
            stop = min(start + batch_size, len(dataset))
            tokens_BT1 = torch.from_numpy(dataset.batch(range(start, stop))).to(device)
            hidden_NC = gpt.hidden_states(tokens_BT1[:, :-1].clamp(min=0)).flatten(0, 1)
            tops = [
                F.log_softmax(head_logits(gpt, chunk_NC) / settings["temperature"], dim=-1).topk(settings["top_k"])
                for chunk_NC in hidden_NC.split(CHUNK_TOKENS)
            ]
            shape = (stop - start, dataset.block_size, settings["top_k"])
            ids[start:stop] = torch.cat([top.indices for top in tops]).cpu().numpy().reshape(shape)
            logprobs[start:stop] = torch.cat([top.values for top in tops]).cpu().numpy().reshape(shape)
            progress.update(stop - start)
            if stop // _SAVE_BLOCKS > start // _SAVE_BLOCKS:
                _flush(folder, ids, logprobs)
                _note_done(folder, settings, stop)
    _flush(folder, ids, logprobs)


def _flush(folder: Path, *arrays: np.memmap) -> None:
    for array in arrays:
        array.flush()
    for name in (IDS, LOGPROBS):
        with (folder / name).open("rb+") as file:
            os.fsync(file.fileno())


def _note_done(folder: Path, settings: dict[str, Any], blocks: int) -> None:
    replace_text(folder / _DONE, json.dumps({"settings": settings, "blocks": blocks}))


def _check_numbers(**numbers: float) -> None:
    for name, value in numbers.items():
        if not 0 < value < float("inf"):
            raise UserError(f"--{name} is {value}; give a number above 0")
