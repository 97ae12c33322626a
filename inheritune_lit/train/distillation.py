"""What a student learns from: a frozen teacher, or the predictions that ``inheritune teach`` has written."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from inheritune_lit.checkpoint.config import Config
from inheritune_lit.checkpoint.export import references_of, step_of
from inheritune_lit.data.manifest import content_sha256, load_packed_manifest
from inheritune_lit.data.packed import PackedDataset
from inheritune_lit.errors import UserError
from inheritune_lit.inherit.load import build_reference
from inheritune_lit.inherit.reference import resolve
from inheritune_lit.io.manifest import MANIFEST, check_settings, read_manifest
from inheritune_lit.io.reading import read_json
from inheritune_lit.io.records import to_record
from inheritune_lit.model.flops import flops_per_token
from inheritune_lit.model.gpt import Transformer
from inheritune_lit.tokenizer import Tokenizer
from inheritune_lit.train.args import DistillArgs, Precision, PretrainArgs, TeachArgs

KIND = "teacher_logits"
DEFAULT_BYTES = 50  # of predictions per token, where their number is not given
_AGAIN = "make it again with `inheritune teach`"


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
        check_head(str(reference.folder), reference.config, vocabulary_of(data))
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


def vocabulary_of(data: Path) -> int:
    """How many ids the tokenizer of packed data has: what a head has beyond them is padding, which no text has."""
    return load_packed_manifest(data).tokenizer.vocab_size


def check_head(name: str, config: Config, vocabulary: int) -> None:
    """Refuse a model that cannot predict each token of a vocabulary."""
    if config.padded_vocab_size < vocabulary:
        logits = f"{name} has {config.padded_vocab_size} logits, its tokenizer {vocabulary} tokens"
        raise UserError(f"{logits}; distillation needs a logit for each: give another model")


class TeacherLogits:
    """Predictions of a teacher for the blocks of a training set, in a folder made by ``inheritune teach``.

    ``expected`` are values that its settings have to have, such as the hash of the data. A folder that is something
    else, unfinished, damaged, or of other data is a ``UserError``.
    """

    def __init__(self, folder: Path, expected: dict[str, Any]) -> None:
        if read_manifest(folder, KIND) is None:
            raise UserError(f"{folder} does not hold a teacher's predictions; make them with `inheritune teach`")
        self.folder, self.settings = folder, settings_of(folder, _AGAIN)
        recorded = {name: self.settings[name] for name in expected}
        check_settings(f"{folder} was made", recorded, expected, f"{_AGAIN}, or change the run")
        self._shape = shape = (self.settings["blocks"], self.settings["block_size"], kept_per_token(self.settings))
        self._arrays = []
        for name, dtype in file_dtypes(self.settings).items():
            path, size = folder / name, math.prod(shape) * dtype.itemsize
            if not path.is_file() or path.stat().st_size != size or min(shape) < 1:
                raise UserError(f"{path} is damaged: it is not a file of {size:,} bytes; {_AGAIN}")
            self._arrays.append(np.memmap(path, dtype, "r", shape=shape))

    def __str__(self) -> str:
        return f"{self.folder}, " + kept_words(self.settings)

    def batch(self, blocks: Sequence[int] | np.ndarray) -> tuple[torch.Tensor, ...]:
        """Of some blocks: ids int64, and of the likeliest tokens log-probabilities fp32, (blocks, block_size, K)."""
        ids_BTK, *logprobs_BTK = (array[blocks] for array in self._arrays)
        vocabulary = self.settings["vocabulary"]
        if (largest := ids_BTK.max(initial=0)) >= vocabulary:
            raise UserError(f"{self.folder} holds token id {largest} of a vocabulary of {vocabulary}; {_AGAIN}")
        tensors = (ids_BTK.astype(np.int64), *(each.astype(np.float32) for each in logprobs_BTK))
        return tuple(map(torch.from_numpy, tensors))


@dataclass(frozen=True)
class _Settings:
    blocks: int
    block_size: int
    vocabulary: int
    temperature: float
    data_sha256: str
    documents: str
    samples: int = 0
    top_k: int = 0
    dtype: Literal["float16", "float32"] = "float16"


def settings_of(folder: Path, remedy: str) -> dict[str, Any]:
    """What the predictions in a folder were made with; a damaged manifest is a ``UserError``."""
    about = (folder / MANIFEST, "the manifest of a teacher's predictions", remedy)
    settings: Any = read_json(*about).get("settings")
    to_record(settings, _Settings, *about, others=True)
    return dict(settings)


def kept_per_token(settings: dict[str, Any]) -> int:
    """How many tokens were drawn, or are the likeliest, at each position."""
    return settings.get("samples") or settings.get("top_k") or 0


def kept_words(settings: dict[str, Any]) -> str:
    """That in words."""
    count = kept_per_token(settings)
    return f"{count} draws per position" if settings.get("samples") else f"top {count} of each position"


def file_dtypes(settings: dict[str, Any]) -> dict[str, np.dtype]:
    """Of the files, which hold (blocks, block_size, K) numbers each."""
    files = {"ids.bin": np.dtype(np.uint16 if settings["vocabulary"] <= 1 << 16 else np.uint32)}
    return files if settings.get("samples") else {**files, "logprobs.bin": np.dtype(settings["dtype"])}


def basis_of(
    args: PretrainArgs | TeachArgs, data: PackedDataset, vocabulary: int, temperature: float
) -> dict[str, Any]:
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
    vocabulary: int  # tokens that have a probability
    name: str  # of the teacher, in words
    settings: dict[str, Any]  # what changes the outcome, as JSON: the teacher by what it holds, not by where it lies
    flops_per_token: float  # of the teacher's forward pass
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
    tokens, vocabulary = args.train.micro_batch_size * block_size, vocabulary_of(args.data)
    check_head(str(args.initial_checkpoint_dir), config, vocabulary)
    if distill.teacher_logits is not None:
        logits = TeacherLogits(distill.teacher_logits, basis_of(args, dataset, vocabulary, distill.temperature))
        settings = {**numbers, "teacher_logits": logits.settings}
        memory = stored_bytes(distill.teacher_logits, tokens)
        return Distillation(distill, None, logits, vocabulary, str(logits), settings, 0.0, memory)
    assert distill.teacher, "active without stored logits"
    dtype = torch.float32 if precision == "32-true" else torch.bfloat16
    teacher, name, identity = open_teacher(distill.teacher, args.data, block_size, dtype)
    theirs = teacher.config
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
    flops = flops_per_token(theirs, block_size, trained=())
    return Distillation(distill, teacher, None, vocabulary, name, settings, flops, memory, layers)


def _teacher_layers(start: Path, depth: int, teacher_depth: int) -> tuple[int, ...]:
    """The teacher's layer behind each of a student's; a ``UserError`` where it is none that the student came from."""
    depths = []
    for reference, layers in references_of(step_of(start)):
        if layers is None:
            break
        if reference.n_layer == teacher_depth and len(layers) == depth:
            return tuple(layers)
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
    settings = settings_of(folder, _AGAIN) if folder.is_dir() else {"samples": DEFAULT_BYTES // 2}
    return 4 * (2 if settings.get("samples") else 3) * tokens * kept_per_token(settings)
