"""The teacher of a distillation: opened, compared with its student, and frozen."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from litgpt.model import GPT

from inheritune_lit.budget import flops_per_token
from inheritune_lit.checkpoint.litgpt_config import Config
from inheritune_lit.checkpoint.manifest import sha256_file
from inheritune_lit.errors import UserError
from inheritune_lit.inherit.load import build_reference
from inheritune_lit.inherit.locate import locate
from inheritune_lit.inherit.options import SliceOptions
from inheritune_lit.tokenizer import Tokenizer


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
        """FLOPs a token of its forward pass: a third of forward and backward."""
        return flops_per_token(self.gpt.config, block_size) / 3


def open_teacher(ref: str, tokenizer_sha256: str, block_size: int, dtype: torch.dtype) -> Teacher:
    """Load a teacher.

    Args:
        ref: as ``--ref`` of ``inheritune slice``.
        tokenizer_sha256: of the tokenizer that the data was made with.
        block_size: tokens a sample.
        dtype: of its weights; RoPE tables stay fp32.

    Raises:
        UserError: there is no such model, or it cannot read the data.
    """
    with locate(ref) as located:
        reference = located.reference
        _check(reference.folder, reference.config, tokenizer_sha256, block_size)
        whole = SliceOptions(n=reference.config.n_layer)
        weights = located.weights(whole)
        gpt = build_reference(reference, weights, dtype, "cpu").eval().requires_grad_(False)
        if located.repository:
            identity: dict[str, Any] = {"source": located.source, "revision": located.repository.revision}
        else:
            hashes = {path.name: sha256_file(path) for path in weights.files}
            identity = {"source": located.source, "sha256": hashes}
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


def _check(folder: Path, config: Config, tokenizer_sha256: str, block_size: int) -> None:
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
