"""``inheritune teach``: a teacher's predictions on training data, written once for any number of students."""

import json
import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from inheritune_lit.data.manifest import content_sha256, load_packed_manifest
from inheritune_lit.data.packed import PackedDataset
from inheritune_lit.errors import UserError
from inheritune_lit.io.folders import check_vacant, explain_full_disk, make_folder, replace_text
from inheritune_lit.io.manifest import write_manifest
from inheritune_lit.io.progress import Progress
from inheritune_lit.io.settings_guard import check_settings
from inheritune_lit.model.forward import head_logits
from inheritune_lit.model.gpt import Transformer
from inheritune_lit.train.args import TeachArgs
from inheritune_lit.train.distillation import IDS, KIND, LOGPROBS, id_dtype, open_arrays, open_teacher
from inheritune_lit.train.loss import CHUNK_TOKENS

logger = logging.getLogger(__name__)

_DONE = "done.json"
_SAVE_BLOCKS = 1024


@dataclass(frozen=True)
class TeachResult:
    """Outcome of ``teach``.

    Attributes:
        folder: the predictions, None after a dry run.
        positions: tokens of training data that they are for.
        size: bytes on disk.
        flops: of the teacher's forward pass over all the data.
    """

    folder: Path | None
    positions: int
    size: int
    flops: float

    def __str__(self) -> str:
        return ""


def teach(args: TeachArgs) -> TeachResult:
    """Write the likeliest tokens of every position of every training sample; the same call continues a killed one.

    The work is done in a hidden folder beside ``out_dir``, which takes its name at the end.

    Raises:
        UserError: bad input, or too little disk.
    """
    check_vacant(args.out_dir)
    dataset = PackedDataset(args.data, "train", args.max_seq_length, args.documents)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    weights_dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    tokenizer = load_packed_manifest(args.data).tokenizer.sha256
    model = open_teacher(args.teacher, tokenizer, args.max_seq_length, weights_dtype)
    vocabulary = model.gpt.config.padded_vocab_size
    if args.top_k > vocabulary:
        raise UserError(f"--top_k is {args.top_k}, the teacher has {vocabulary} tokens; give at most as many")
    settings = {
        "teacher": model.identity,
        "data_sha256": content_sha256(args.data),
        "documents": args.documents,
        "blocks": len(dataset),
        "block_size": args.max_seq_length,
        "vocabulary": vocabulary,
        "top_k": args.top_k,
        "temperature": args.temperature,
        "dtype": args.dtype,
        "computed_in": str(weights_dtype).removeprefix("torch."),
    }
    positions = len(dataset) * args.max_seq_length
    size = positions * args.top_k * (id_dtype(vocabulary).itemsize + np.dtype(args.dtype).itemsize)
    flops = positions * model.flops(args.max_seq_length)
    logger.info(
        f"teach {model.name}: top {args.top_k} of {vocabulary:,} tokens for {positions:,} positions, {len(dataset):,} "
        f"blocks\n      {size / 1e9:.2f} GB on disk, {flops:.2e} FLOPs on {device}",
    )
    if args.dry_run:
        return TeachResult(None, positions, size, flops)
    folder = args.out_dir.parent / f".{args.out_dir.name}.partial"
    done = _begin(folder, settings, size)
    with explain_full_disk(args.out_dir):
        _write(folder, settings, model.gpt.to(device), dataset, done, args.batch_size)
        write_manifest(folder, KIND, {"settings": settings})
        os.replace(folder, args.out_dir)
        (args.out_dir / _DONE).unlink()
    logger.info(f"wrote {args.out_dir}")
    return TeachResult(args.out_dir, positions, size, flops)


def _begin(folder: Path, settings: dict[str, Any], size: int) -> int:
    """Make the working folder, or find how many blocks of the same work it holds.

    Raises:
        UserError: it holds other work, or the disk is too small.
    """
    if (folder / _DONE).is_file():
        found = json.loads((folder / _DONE).read_text())
        remedy = f"use the old value, remove {folder} or give another --out_dir"
        check_settings(f"{folder} was started", found["settings"], settings, remedy)
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
