"""What a student learns from, a frozen teacher or its written predictions; and ``inheritune teach``, which writes
them once for any number of students."""

import logging
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.nn import functional as F

from inheritune_lit.checkpoint.config import Config
from inheritune_lit.data.manifest import content_sha256, load_packed_manifest
from inheritune_lit.data.packed import PackedDataset
from inheritune_lit.errors import UserError
from inheritune_lit.inherit.grown import references_of
from inheritune_lit.inherit.load import build_reference
from inheritune_lit.inherit.reference import resolve
from inheritune_lit.io.folders import check_space, check_vacant, explain_full_disk, is_leftover, new_folder
from inheritune_lit.io.manifest import MANIFEST, check_settings, read_manifest, write_manifest
from inheritune_lit.io.progress import Progress
from inheritune_lit.io.reading import read_json
from inheritune_lit.io.records import to_record
from inheritune_lit.model.devices import batches_per_wait, has_native_bf16, tell_bf16, to_device
from inheritune_lit.model.flops import flops_per_token
from inheritune_lit.model.gpt import Transformer, head_logits
from inheritune_lit.tokenizer import Tokenizer
from inheritune_lit.train.args import DistillArgs, Precision, PretrainArgs, TeachArgs
from inheritune_lit.train.loss import CHUNK_TOKENS

logger = logging.getLogger(__name__)

_IDS, _LOGPROBS = "ids.bin", "logprobs.bin"
_KIND = "teacher_logits"
_AGAIN = "make it again with `inheritune teach`"
_SAVE_BLOCKS = 1024


def open_teacher(ref: str, data: Path, block_size: int, dtype: torch.dtype) -> tuple[Transformer, str, dict[str, Any]]:
    """Load a teacher that reads packed data, with weights of a dtype (RoPE tables stay fp32).

    Returns the frozen model in evaluation mode, on the CPU; its name; and where it is from or what it holds. No such
    model (``ref`` is as ``--ref`` of ``inheritune slice``), or one that cannot read the data, is a ``UserError``.
    """
    tokenizer_sha256 = load_packed_manifest(data).tokenizer.sha256
    with resolve(ref) as resolved:
        reference = resolved.reference
        if (own_sha256 := Tokenizer(reference.folder).sha256()) != tokenizer_sha256:
            hashes = f"{own_sha256[:12]}..., that of the data {tokenizer_sha256[:12]}..."
            raise UserError(
                f"the teacher {reference.folder} has another vocabulary than the data: its tokenizer's SHA-256 is "
                f"{hashes}; give a teacher of the same tokenizer"
            )
        if (most := reference.config.block_size) < block_size:
            remedy = f"give --train.max_seq_length {most} or another teacher"
            raise UserError(f"the teacher attends to {most} tokens, samples have {block_size}; {remedy}")
        resolved = resolved.open()
        gpt = build_reference(resolved.reference, dtype, "cpu").eval().requires_grad_(False)
        identity: dict[str, Any] = {"source": resolved.source}
        if resolved.repository:
            identity["revision"] = resolved.repository.revision
        else:
            identity["sha256"] = resolved.file_hashes()
    gpt.max_seq_length = block_size
    return gpt, reference.name, identity


class TeacherLogits:
    """Predictions of a teacher for the blocks of a training set, in a folder made by ``inheritune teach``.

    ``expected`` are values that its settings have to have, such as the hash of the data. A folder that is something
    else, unfinished, damaged, or of other data is a ``UserError``.
    """

    def __init__(self, folder: Path, expected: dict[str, Any]) -> None:
        manifest = read_manifest(folder) if folder.is_dir() else None
        if manifest is None or manifest.get("kind") != _KIND:
            raise UserError(f"{folder} does not hold a teacher's predictions; make them with `inheritune teach`")
        self.folder, self.settings = folder, _settings_of(folder, _AGAIN)
        recorded = {name: self.settings[name] for name in expected}
        check_settings(f"{folder} was made", recorded, expected, f"{_AGAIN}, or change the run")
        shape = tuple(self.settings[name] for name in ("blocks", "block_size", "top_k"))
        arrays = []
        for name, dtype in _dtypes(self.settings).items():
            path, size = folder / name, math.prod(shape) * dtype.itemsize
            if not path.is_file() or path.stat().st_size != size or min(shape) < 1:
                raise UserError(f"{path} is damaged: it is not a file of {size:,} bytes; {_AGAIN}")
            arrays.append(np.memmap(path, dtype, "r", shape=shape))
        self._ids, self._logprobs = arrays

    def batch(self, blocks: Sequence[int] | np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Of some blocks: ids int64 and log-probabilities fp32, both (blocks, block_size, top_k)."""
        ids_BTK, logprobs_BTK = self._ids[blocks], self._logprobs[blocks]
        vocabulary = self.settings["vocabulary"]
        if (largest := ids_BTK.max(initial=0)) >= vocabulary:
            raise UserError(f"{self.folder} holds token id {largest} of a vocabulary of {vocabulary}; {_AGAIN}")
        return torch.from_numpy(ids_BTK.astype(np.int64)), torch.from_numpy(logprobs_BTK.astype(np.float32))


@dataclass(frozen=True)
class _Settings:
    blocks: int
    block_size: int
    top_k: int
    vocabulary: int
    temperature: float
    dtype: Literal["float16", "float32"]
    data_sha256: str
    documents: str


def _settings_of(folder: Path, remedy: str) -> dict[str, Any]:
    """What the predictions in a folder were made with; a damaged manifest is a ``UserError``."""
    about = (folder / MANIFEST, "the manifest of a teacher's predictions", remedy)
    settings: Any = read_json(*about).get("settings")
    to_record(settings, _Settings, *about, others=True)
    return dict(settings)


def _dtypes(settings: dict[str, Any]) -> dict[str, np.dtype]:
    """Of the two files, which hold (blocks, block_size, top_k) numbers each."""
    ids = np.uint16 if settings["vocabulary"] <= 1 << 16 else np.uint32
    return {_IDS: np.dtype(ids), _LOGPROBS: np.dtype(settings["dtype"])}


def _basis(args: PretrainArgs | TeachArgs, data: PackedDataset, vocabulary: int, temperature: float) -> dict[str, Any]:
    """What predictions are of: they serve a run of the same."""
    return {
        "data_sha256": content_sha256(args.data),
        "documents": args.documents,
        "blocks": len(data),
        "block_size": data.block_size,
        "vocabulary": vocabulary,
        "temperature": temperature,
    }


@dataclass(frozen=True)
class Distillation:
    """What a student learns from, and the weights of the loss."""

    args: DistillArgs
    teacher: Transformer | None  # None where its predictions are read from ``logits``
    logits: TeacherLogits | None
    name: str  # of the teacher, in words
    settings: dict[str, Any]  # what changes the outcome, as JSON: the teacher by what it holds, not by where it lies
    flops_per_token: float  # of the teacher's forward pass: a third of forward and backward
    memory: int  # bytes that it takes on each device
    layers: tuple[int, ...] = ()  # of the teacher behind the student's, where they are aligned


def prepare_distillation(
    args: PretrainArgs, dataset: PackedDataset, config: Config, precision: Precision
) -> Distillation | None:
    """Open what a student of this shape learns from; None where only the text counts.

    A teacher that does not fit student and data is a UserError.
    """
    distill, block_size = args.distill, dataset.block_size
    if not distill.active:
        return None
    numbers = {name: value for name, value in asdict(distill).items() if not name.startswith("teacher")}
    tokens = args.train.micro_batch_size * block_size
    if distill.teacher_logits is not None:
        expected = _basis(args, dataset, config.padded_vocab_size, distill.temperature)
        logits = TeacherLogits(distill.teacher_logits, expected)
        top_k, settings = logits.settings["top_k"], {**numbers, "teacher_logits": logits.settings}
        name = f"{distill.teacher_logits}, top {top_k} of each position"
        return Distillation(distill, None, logits, name, settings, 0.0, stored_bytes(distill.teacher_logits, tokens))
    assert distill.teacher, "active without stored logits"
    dtype = torch.float32 if precision == "32-true" else torch.bfloat16
    teacher, name, identity = open_teacher(distill.teacher, args.data, block_size, dtype)
    theirs = teacher.config
    if theirs.padded_vocab_size != config.padded_vocab_size:
        raise UserError(
            f"--distill.teacher has another vocabulary than the student: {theirs.padded_vocab_size} and "
            f"{config.padded_vocab_size} logits; give a teacher of the same tokenizer and size of the head"
        )
    if distill.align != "none" and theirs.n_embd != config.n_embd:
        raise UserError(
            f"--distill.align {distill.align} compares hidden states, but the teacher's width is {theirs.n_embd} and "
            f"the student's {config.n_embd}; use --distill.align none"
        )
    parameters = sum(parameter.numel() for parameter in teacher.parameters())
    settings = {**numbers, "teacher": identity.get("sha256") or identity}
    name, layers = f"{name}, {parameters:,} parameters", tuple[int, ...]()
    if distill.align == "layers":
        layers = _teacher_layers(args.initial_checkpoint_dir, config.n_layer, theirs.n_layer)
        settings["teacher_layers"], name = list(layers), f"{name}, states of {len(layers)} layers"
    memory = teacher_bytes(theirs, parameters, tokens, precision, len(layers))
    flops = flops_per_token(theirs, block_size) / 3
    return Distillation(distill, teacher, None, name, settings, flops, memory, layers)


def _teacher_layers(start: Path, depth: int, teacher_depth: int) -> tuple[int, ...]:
    """The teacher's layer behind each of a student's; a ``UserError`` where it is none that the student came from."""
    depths = []
    for reference, layers in references_of(start):
        if reference.n_layer == teacher_depth and len(layers) == depth:
            return layers
        depths.append(str(reference.n_layer))
    origin = f"was sliced from {' and '.join(depths)} layers" if depths else "is not a slice, or of random weights"
    raise UserError(
        f"--distill.align layers needs the reference's layer behind each: {start} {origin}, the teacher has "
        f"{teacher_depth} layers; give the reference as --distill.teacher, or use --distill.align last"
    )


def teacher_bytes(config: Config, parameters: int, tokens: int, precision: Precision, aligned: int = 0) -> int:
    """Bytes of a teacher on each device: its weights, the widest layer of a forward pass on so many tokens, and the
    hidden states that are ``aligned``, with the student's and what their distance keeps for the backward pass."""
    size = parameters + tokens * (3 * config.n_embd + 2 * config.intermediate_size)
    return (4 if precision == "32-true" else 2) * size + 16 * aligned * tokens * config.n_embd


def stored_bytes(folder: Path, tokens: int) -> int:
    """Bytes of stored predictions for a batch of so many tokens; where none are yet, of what ``teach`` stores."""
    top_k = _settings_of(folder, _AGAIN)["top_k"] if folder.is_dir() else 50
    return 12 * tokens * int(top_k)


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
    """Write the likeliest tokens of every position of every training sample; the same call continues a killed one.

    The work is done in a hidden folder beside ``out_dir``, which takes its name at the end. Bad input, or too little
    disk, is a ``UserError``.
    """
    check_vacant(args.out_dir)
    dataset = PackedDataset(args.data, "train", args.max_seq_length, args.documents)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    weights_dtype = torch.bfloat16 if has_native_bf16() else torch.float32
    tell_bf16(device, used=False)
    gpt, name, identity = open_teacher(args.teacher, args.data, args.max_seq_length, weights_dtype)
    vocabulary = gpt.config.padded_vocab_size
    if args.top_k > vocabulary:
        raise UserError(f"--top_k is {args.top_k}, the teacher has {vocabulary} tokens; give at most as many")
    settings = {
        "teacher": identity,
        **_basis(args, dataset, vocabulary, args.temperature),
        "top_k": args.top_k,
        "dtype": args.dtype,
        "computed_in": str(weights_dtype).removeprefix("torch."),
    }
    positions = len(dataset) * args.max_seq_length
    size = positions * args.top_k * sum(dtype.itemsize for dtype in _dtypes(settings).values())
    flops = positions * flops_per_token(gpt.config, args.max_seq_length) / 3
    logger.info(
        f"teach {name}: top {args.top_k} of {vocabulary:,} tokens for {positions:,} positions, {len(dataset):,} "
        f"blocks\n      {size / 1e9:.2f} GB on disk, {flops:.2e} FLOPs on {device}"
    )
    if args.dry_run:
        return TeachResult(None, positions, size, flops)
    with explain_full_disk(args.out_dir), new_folder(args.out_dir, keep=True) as folder:
        again = f"remove {folder} to begin again"
        if os.path.lexists(folder / MANIFEST):
            remedy = f"use the old value, remove {folder} or give another --out_dir"
            check_settings(f"{folder} was started", _settings_of(folder, again), settings, remedy)
        else:
            if strange := [path.name for path in folder.iterdir() if not is_leftover(path)]:
                raise UserError(f"{folder} holds {strange[0]}, which is not of `inheritune teach`; remove it")
            check_space(args.out_dir, size, "the teacher's predictions", "a smaller --top_k")
            write_manifest(folder, _KIND, {"settings": settings})
        _write(folder, settings, gpt.to(device), dataset, args.batch_size)
    logger.info(f"wrote {args.out_dir}")
    return TeachResult(args.out_dir, positions, size, flops)


def _write(folder: Path, settings: dict[str, Any], gpt: Transformer, dataset: PackedDataset, batch_size: int) -> None:
    """Append to the two files what they lack."""
    device, top_k, dtypes = next(gpt.parameters()).device, settings["top_k"], _dtypes(settings).values()
    with (folder / _IDS).open("ab") as ids, (folder / _LOGPROBS).open("ab") as logprobs:
        block_bytes = [dtype.itemsize * dataset.block_size * top_k for dtype in dtypes]
        files = dict(zip((ids, logprobs), block_bytes, strict=True))
        done = min(len(dataset), *(file.tell() // each for file, each in files.items()))
        done -= done % _SAVE_BLOCKS  # what has come since may not have reached the disk
        for file, each in files.items():
            file.truncate(done * each)
        with Progress("teach", len(dataset), "block", done) as progress, torch.no_grad():
            group = batch_size * batches_per_wait(device)
            for start in range(done, len(dataset), group):
                stop, tops = min(start + group, len(dataset)), list[Any]()
                for first in range(start, stop, batch_size):
                    batch = torch.from_numpy(dataset.batch(range(first, min(first + batch_size, stop))))
                    tokens_BT = to_device(batch[:, :-1].clamp(min=0), device)
                    tops += [
                        F.log_softmax(head_logits(gpt, chunk_NC) / settings["temperature"], dim=-1).topk(top_k)
                        for chunk_NC in gpt.hidden_states(tokens_BT).flatten(0, 1).split(CHUNK_TOKENS)
                    ]
                found = (torch.cat([top.indices for top in tops]), torch.cat([top.values for top in tops]))
                for file, dtype, each_NK in zip(files, dtypes, found, strict=True):
                    file.write(each_NK.cpu().numpy().astype(dtype).tobytes())
                if stop == len(dataset) or stop // _SAVE_BLOCKS > start // _SAVE_BLOCKS:
                    for file in files:
                        file.flush()
                        os.fsync(file.fileno())
                progress.update(stop - start)
