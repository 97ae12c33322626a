"""``inheritune teach``: a teacher's predictions on packed data, written once for any number of students."""

import logging
import math
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from inheritune_lit.data.packed import PackedDataset
from inheritune_lit.errors import UserError
from inheritune_lit.evaluation.score_cache import Ranks
from inheritune_lit.io.folders import check_space, check_vacant, explain_full_disk, is_leftover, new_folder
from inheritune_lit.io.manifest import MANIFEST, check_settings, write_manifest
from inheritune_lit.io.progress import Progress
from inheritune_lit.model.devices import (
    batches_per_wait,
    device_count,
    has_native_bf16,
    launch,
    on_first_rank,
    one_fate,
    tell_bf16,
    to_device,
)
from inheritune_lit.model.flops import flops_per_token
from inheritune_lit.model.gpt import Transformer, head_logits
from inheritune_lit.train import distillation
from inheritune_lit.train.args import TeachArgs
from inheritune_lit.train.loss import CHUNK_TOKENS

logger = logging.getLogger(__name__)

_SAVE_BLOCKS = 1024


@dataclass(frozen=True)
class TeachResult:
    """Outcome of ``teach``: folder (None after a dry run), tokens that it predicts, its bytes, and the FLOPs."""

    folder: Path | None
    positions: int
    size: int
    flops: float

    def __str__(self) -> str:
        return ""


def teach(args: TeachArgs) -> TeachResult:
    """Write tokens drawn from a teacher's distribution, or its likeliest ones, at every position of every training
    sample; the same call continues a killed one.

    The work is done in a hidden folder beside ``out_dir``, which takes its name at the end. Bad input, or too little
    disk, is a ``UserError``.
    """
    check_vacant(args.out_dir)
    dataset = PackedDataset(args.data, "train", args.max_seq_length, args.documents)
    weights_dtype = torch.bfloat16 if has_native_bf16() else torch.float32
    gpt, name, identity = distillation.open_teacher(args.teacher, args.data, args.max_seq_length, weights_dtype)
    vocabulary = distillation.vocabulary_of(args.data)
    if args.top_k is not None and args.top_k > vocabulary:
        raise UserError(f"--top_k is {args.top_k}, the teacher has {vocabulary} tokens; give at most as many")
    settings = {
        "teacher": identity,
        **distillation.basis_of(args, dataset, vocabulary, args.temperature),
        "computed_in": str(weights_dtype).removeprefix("torch."),
    }
    samples = args.samples or distillation.DEFAULT_BYTES // (2 if vocabulary <= 1 << 16 else 4)
    drawn = {"samples": samples, "seed": args.seed}
    settings |= drawn if args.top_k is None else {"top_k": args.top_k, "dtype": args.dtype}
    kept, dtypes = distillation.kept_per_token(settings), distillation.file_dtypes(settings)
    fabric = launch(device_count(args.devices, 1), 1)
    ranks = Ranks.of(fabric)
    positions = len(dataset) * args.max_seq_length
    size = positions * kept * sum(dtype.itemsize for dtype in dtypes.values())
    flops = positions * flops_per_token(gpt.config, args.max_seq_length, trained=())
    if ranks.is_first:
        tell_bf16(ranks.device, used=False)
        machine = f"{ranks.world} x {ranks.device.type}" if ranks.world > 1 else ranks.device.type
        logger.info(
            f"teach {name}: {distillation.kept_words(settings)} from {vocabulary:,} tokens, {positions:,} positions, "
            f"{len(dataset):,} blocks\n      {size / 1e9:.2f} GB on disk, {flops:.2e} FLOPs on {machine}"
        )
    if args.dry_run:
        return TeachResult(None, positions, size, flops)
    with on_first_rank(fabric, _working_folder(args.out_dir, settings, size)) as folder, one_fate(fabric):
        _write(folder, settings, gpt.to(ranks.device), dataset, args.batch_size, ranks)
    if ranks.is_first:
        logger.info(f"wrote {args.out_dir}")
    return TeachResult(args.out_dir, positions, size, flops)


@contextmanager
def _working_folder(out_dir: Path, settings: dict[str, Any], size: int) -> Iterator[Path]:
    """Yields the hidden folder, which holds nothing, or what a call with the same settings has left."""
    with explain_full_disk(out_dir), new_folder(out_dir, keep=True) as folder:
        again = f"remove {folder} to begin again"
        if os.path.lexists(folder / MANIFEST):
            remedy = f"use the old value, remove {folder} or give another --out_dir"
            check_settings(f"{folder} was started", distillation.settings_of(folder, again), settings, remedy)
        else:
            if strange := [path.name for path in folder.iterdir() if not is_leftover(path)]:
                raise UserError(f"{folder} holds {strange[0]}, which is not of `inheritune teach`; remove it")
            check_space(out_dir, size, "the teacher's predictions", "fewer --samples")
            write_manifest(folder, distillation.KIND, {"settings": settings})
        yield folder


def _write(
    folder: Path | None,
    settings: dict[str, Any],
    gpt: Transformer,
    dataset: PackedDataset,
    batch_size: int,
    ranks: Ranks,
) -> None:
    """Append to the files what they lack: all ranks compute, the first one, which has the folder, writes."""
    shape = dataset.block_size, distillation.kept_per_token(settings)
    dtypes = distillation.file_dtypes(settings)
    with ExitStack() as stack:
        files = []
        for path, dtype in [(folder / name, dtype) for name, dtype in dtypes.items()] if folder else ():
            files.append((stack.enter_context(path.open("ab")), dtype, dtype.itemsize * math.prod(shape)))
        done = min([len(dataset), *(file.tell() // each for file, _, each in files)])
        done -= done % _SAVE_BLOCKS  # what has come since may not have reached the disk
        for file, _, each in files:
            file.truncate(done * each)
        done = int(ranks.add_up(torch.tensor(done if ranks.is_first else 0)))
        progress = stack.enter_context(Progress("teach", len(dataset), "block", done, hidden=not ranks.is_first))
        group = batch_size * batches_per_wait(ranks.device) * ranks.world
        for start in range(done, len(dataset), group):
            stop = min(start + group, len(dataset))
            types = (torch.int64, torch.float32)[: len(dtypes)]
            found = [torch.zeros(stop - start, *shape, dtype=dtype, device=ranks.device) for dtype in types]
            for first in range(start, stop, batch_size)[ranks.rank :: ranks.world]:
                rows = slice(first - start, min(first + batch_size, stop) - start)
                parts = _predict(gpt, dataset, range(start, stop)[rows], settings)
                for whole_BTK, part_NK in zip(found, parts, strict=True):
                    whole_BTK[rows] = part_NK.view(-1, *shape)
            found = [ranks.add_up(whole_BTK) for whole_BTK in found]
            for (file, dtype, _), whole_BTK in zip(files, found, strict=True) if files else ():
                file.write(whole_BTK.cpu().numpy().astype(dtype).tobytes())
                if stop == len(dataset) or stop // _SAVE_BLOCKS > start // _SAVE_BLOCKS:
                    file.flush()
                    os.fsync(file.fileno())
            progress.update(stop - start)


@torch.no_grad()
def _predict(
    gpt: Transformer, dataset: PackedDataset, blocks: range, settings: dict[str, Any]
) -> tuple[torch.Tensor, ...]:
    """Of some blocks: ids that were drawn, or the likeliest and their log-probabilities, each (blocks * T, K)."""
    device, found = next(gpt.parameters()).device, list[tuple[torch.Tensor, ...]]()
    tokens_BT = to_device(torch.from_numpy(dataset.batch(blocks))[:, :-1].clamp(min=0), device)
    hidden_NC = gpt.hidden_states(tokens_BT).flatten(0, 1)
    if count := settings.get("samples"):
        drawn = [uniform_numbers(settings["seed"], block, dataset.block_size * count) for block in blocks]
        uniform_NK = to_device(torch.from_numpy(np.concatenate(drawn)).view(-1, count), device)
    for start in range(0, len(hidden_NC), CHUNK_TOKENS):
        chunk = slice(start, start + CHUNK_TOKENS)
        logits_NU = head_logits(gpt, hidden_NC[chunk])[:, : settings["vocabulary"]] / settings["temperature"]
        if count:
            found.append((draw(logits_NU, uniform_NK[chunk]),))
        else:
            top = F.log_softmax(logits_NU, dim=-1).topk(settings["top_k"])
            found.append((top.indices, top.values))
    return tuple(map(torch.cat, zip(*found, strict=True)))


def uniform_numbers(seed: int, block: int, count: int) -> np.ndarray:
    """Numbers from 0 to below 1 in fp64, the same for a seed and a block on every platform and with every NumPy."""
    bits = np.random.Philox(key=np.array([seed, block], dtype=np.uint64)).random_raw(count)
    return (bits >> np.uint64(11)) * 2.0**-53


def draw(logits_NU: torch.Tensor, uniform_NK: torch.Tensor) -> torch.Tensor:
    """Ids (N, K) drawn from softmax(logits), by inversion of its distribution at numbers from 0 to below 1.

    In fp64: fp32 would lose the unlikely tokens, which are many, beside the sum of those before them.
    """
    cumulative_NU = logits_NU.softmax(dim=-1).double().cumsum(dim=-1)
    ids_NK = torch.searchsorted(cumulative_NU, uniform_NK * cumulative_NU[:, -1:], right=True)
    return ids_NK.clamp(max=logits_NU.shape[1] - 1)
