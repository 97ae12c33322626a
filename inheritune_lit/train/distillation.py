"""What a student learns from: a frozen teacher, or the predictions that one has written down."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from litgpt.model import GPT

from inheritune_lit.checkpoint.config import Config
from inheritune_lit.data.manifest import content_sha256, load_packed_manifest
from inheritune_lit.data.packed import PackedDataset
from inheritune_lit.errors import UserError
from inheritune_lit.inherit.load import build_reference
from inheritune_lit.inherit.resolve import resolve
from inheritune_lit.io.manifest import read_manifest
from inheritune_lit.io.settings_guard import check_settings
from inheritune_lit.model.flops import flops_per_token
from inheritune_lit.tokenizer import Tokenizer
from inheritune_lit.train.args import DistillArgs, Precision, PretrainArgs
from inheritune_lit.train.loss import DistillationModel

IDS, LOGPROBS = "ids.bin", "logprobs.bin"
KIND = "teacher_logits"


def id_dtype(vocabulary: int) -> np.dtype:
    """Smallest type that holds every token id."""
    return np.dtype(np.uint16 if vocabulary <= 1 << 16 else np.uint32)


def open_arrays(folder: Path, content: dict[str, Any], mode: Literal["r", "r+", "w+"]) -> tuple[np.memmap, np.memmap]:
    """Both arrays (blocks, block_size, top_k): ids and log-probabilities.

    Args:
        content: ``settings`` of the manifest.
        mode: numpy's "r", "r+" or "w+".
    """
    shape: tuple[int, int, int] = (content["blocks"], content["block_size"], content["top_k"])
    dtypes = {IDS: id_dtype(content["vocabulary"]), LOGPROBS: np.dtype(content["dtype"])}
    ids, logprobs = (np.memmap(folder / name, dtype=dtype, mode=mode, shape=shape) for name, dtype in dtypes.items())
    return ids, logprobs


class TeacherLogits:
    """Predictions of a teacher for the blocks of a training set.

    Args:
        folder: made by ``inheritune teach``.
        expected: values that its settings have to have, such as the hash of the data.

    Attributes:
        settings: what it was made with.

    Raises:
        UserError: the folder is something else, unfinished, damaged, or of other data.
    """

    def __init__(self, folder: Path, expected: dict[str, Any]) -> None:
        manifest = read_manifest(folder) if folder.is_dir() else None
        if manifest is None or manifest.get("kind") != KIND:
            raise UserError(f"{folder} does not hold a teacher's predictions; make them with `inheritune teach`")
        self.settings: dict[str, Any] = manifest["settings"]
        remedy = "make it again with `inheritune teach`, or change the run"
        check_settings(f"{folder} was made", {name: self.settings[name] for name in expected}, expected, remedy)
        try:
            self._ids, self._logprobs = open_arrays(folder, self.settings, "r")
        except (OSError, ValueError) as error:
            raise UserError(f"{folder} is damaged ({error}); make it again with `inheritune teach`") from error

    def batch(self, blocks: Sequence[int] | np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Of some blocks: ids int64 and log-probabilities fp32, both (blocks, block_size, top_k)."""
        ids_BTK, logprobs_BTK = self._ids[blocks], self._logprobs[blocks]
        return torch.from_numpy(ids_BTK.astype(np.int64)), torch.from_numpy(logprobs_BTK.astype(np.float32))


@dataclass(frozen=True)
class Teacher:
    """A frozen model.

    Attributes:
        gpt: on the CPU, in evaluation mode, without gradients.
        name: for people.
        identity: where it is from and what it holds, JSON types only.
    """

    gpt: GPT
    name: str
    identity: dict[str, Any]

    @property
    def parameters(self) -> int:
        """How many, a tied head counted once."""
        return sum(parameter.numel() for parameter in self.gpt.parameters())

    def flops(self, block_size: int) -> float:
        """FLOPs per token of its forward pass: a third of forward and backward."""
        return flops_per_token(self.gpt.config, block_size) / 3


def open_teacher(ref: str, tokenizer_sha256: str, block_size: int, dtype: torch.dtype) -> Teacher:
    """Load a teacher.

    Args:
        ref: as ``--ref`` of ``inheritune slice``.
        tokenizer_sha256: of the tokenizer that the data was made with.
        block_size: tokens per sample.
        dtype: of its weights; RoPE tables stay fp32.

    Raises:
        UserError: there is no such model, or it cannot read the data.
    """
    with resolve(ref) as resolved:
        reference = resolved.reference
        _check_teacher(reference.folder, reference.config, tokenizer_sha256, block_size)
        resolved = resolved.open()
        gpt = build_reference(resolved.reference, dtype, "cpu").eval().requires_grad_(False)
        if resolved.repository:
            identity: dict[str, Any] = {"source": resolved.source, "revision": resolved.repository.revision}
        else:
            identity = {"source": resolved.source, "sha256": resolved.file_hashes()}
    gpt.max_seq_length = block_size
    return Teacher(gpt, reference.name, identity)


def check_student(teacher: Config, student: Config, kind: str) -> None:
    """Compare what the two models compute.

    Raises:
        UserError: their vocabularies differ, or their widths where hidden states are compared.
    """
    if teacher.padded_vocab_size != student.padded_vocab_size:
        raise UserError(
            f"--distill.teacher has another vocabulary than the student: {teacher.padded_vocab_size} and "
            f"{student.padded_vocab_size} logits; give a teacher of the same tokenizer and size of the head"
        )
    if kind == "distilbert" and teacher.n_embd != student.n_embd:
        raise UserError(
            f"--distill.kind distilbert compares hidden states, but the teacher's width is {teacher.n_embd} and the "
            f"student's {student.n_embd}; use --distill.kind logits"
        )


def _check_teacher(folder: Path, config: Config, tokenizer_sha256: str, block_size: int) -> None:
    if Tokenizer(folder).sha256() != tokenizer_sha256:
        raise UserError(
            f"the teacher {folder} has another vocabulary than the data: its tokenizer's SHA-256 is "
            f"{Tokenizer(folder).sha256()[:12]}..., that of the data {tokenizer_sha256[:12]}...; give a teacher of the "
            "same tokenizer"
        )
    if config.block_size < block_size:
        raise UserError(
            f"the teacher attends to {config.block_size} tokens, samples have {block_size}; give "
            f"--train.max_seq_length {config.block_size} or another teacher"
        )


@dataclass(frozen=True)
class Distillation:
    """What a student learns from, a model or what one has written down, and the weights of the loss."""

    args: DistillArgs
    block_size: int
    source: Teacher | TeacherLogits

    @property
    def teacher(self) -> Teacher | None:
        """The model, if it is one."""
        return self.source if isinstance(self.source, Teacher) else None

    @property
    def logits(self) -> TeacherLogits | None:
        """What a model has written down, if it is that."""
        return self.source if isinstance(self.source, TeacherLogits) else None

    @property
    def settings(self) -> dict[str, Any]:
        """What changes the outcome, JSON types only: the teacher by what it holds, not by where it lies."""
        numbers = {name: value for name, value in asdict(self.args).items() if not name.startswith("teacher")}
        if isinstance(self.source, TeacherLogits):
            return {**numbers, "teacher_logits": self.source.settings}
        identity = self.source.identity
        return {**numbers, "teacher": identity.get("sha256") or identity}

    @property
    def flops_per_token(self) -> float:
        """FLOPs per token that the teacher adds to training."""
        return self.teacher.flops(self.block_size) if self.teacher else 0.0

    @property
    def name(self) -> str:
        """The teacher, in words."""
        if isinstance(self.source, TeacherLogits):
            return f"{self.args.teacher_logits}, top {self.source.settings['top_k']} of each position"
        return f"{self.source.name}, {self.source.parameters:,} parameters"

    def memory(self, micro_batch_size: int) -> int:
        """Bytes that the teacher takes on each device: its weights, and the widest layer of a forward pass."""
        if isinstance(self.source, TeacherLogits):
            return 12 * micro_batch_size * self.block_size * self.source.settings["top_k"]
        config, each = self.source.gpt.config, next(self.source.gpt.parameters()).element_size()
        wide = 3 * config.n_embd + 2 * config.intermediate_size
        return each * (self.source.parameters + micro_batch_size * self.block_size * wide)

    def model(self, student: GPT, compiled: bool, device: torch.device) -> DistillationModel:
        """The student with its loss; the teacher moves to the device."""
        return DistillationModel(student, self.args, self.teacher.gpt.to(device) if self.teacher else None, compiled)


def prepare_distillation(
    args: PretrainArgs, dataset: PackedDataset, config: Config, precision: Precision
) -> Distillation | None:
    """Open what the student learns from; None where only the text counts.

    Args:
        args: the run's.
        dataset: the training data.
        config: the student's.

    Raises:
        UserError: the teacher does not fit student and data.
    """
    distill, block_size = args.distill, dataset.block_size
    if not distill.active:
        return None
    if distill.teacher_logits is not None:
        expected = {
            "data_sha256": content_sha256(args.data),
            "documents": args.documents,
            "blocks": len(dataset),
            "block_size": block_size,
            "vocabulary": config.padded_vocab_size,
            "temperature": distill.temperature,
        }
        return Distillation(distill, block_size, TeacherLogits(distill.teacher_logits, expected))
    dtype = torch.float32 if precision == "32-true" else torch.bfloat16
    tokenizer = load_packed_manifest(args.data).tokenizer.sha256
    assert distill.teacher, "active without stored logits"
    teacher = open_teacher(distill.teacher, tokenizer, block_size, dtype)
    check_student(teacher.gpt.config, config, distill.kind)
    return Distillation(distill, block_size, teacher)
