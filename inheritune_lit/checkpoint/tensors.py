"""Every tensor of a litgpt model with its shape, from the configuration alone, and pieces of stored tensors.

Building the model on the meta device says the same, but needs all of litgpt: see ``checkpoint/config.py``.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby

import torch

from inheritune_lit.checkpoint.config import Config, GPT2Config

Shapes = dict[str, tuple[int, ...]]

EMBEDDING, HEAD = "transformer.wte.weight", "lm_head.weight"
_EMBEDDINGS = (EMBEDDING, "transformer.wpe.weight", HEAD, "lm_head.bias")


@dataclass(frozen=True)
class TensorSpec:
    """What a tensor is, without its values."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize


def tensor_shapes(config: Config, tied: bool) -> Shapes:
    """Names and shapes in the order of ``GPT.state_dict``, but the head at the end; a tied one is left out."""
    shapes: Shapes = {EMBEDDING: (config.padded_vocab_size, config.n_embd)}
    for layer in range(config.n_layer):
        shapes |= {f"transformer.h.{layer}.{name}": shape for name, shape in _block(config).items()}
    shapes |= _norm(config, "transformer.ln_f")
    if isinstance(config, GPT2Config):
        shapes["transformer.wpe.weight"] = (config.block_size, config.n_embd)
    if not tied:
        shapes[HEAD] = (config.padded_vocab_size, config.n_embd)
    if config.lm_head_bias:
        shapes["lm_head.bias"] = (config.padded_vocab_size,)
    return shapes


def count_parameters(shapes: Shapes, embeddings: bool = True) -> int:
    """How many numbers tensors hold; without token embedding, learned positions and head where these are not wanted."""
    return sum(math.prod(shape) for name, shape in shapes.items() if embeddings or name not in _EMBEDDINGS)


def mismatch(expected: Shapes, found: Shapes) -> str | None:
    """What is wrong with the tensors of a checkpoint, None where nothing is."""
    if missing := sorted(expected.keys() - found.keys()):
        return f"{len(missing)} tensors are missing, such as {missing[0]}"
    if extra := sorted(found.keys() - expected.keys()):
        return f"{len(extra)} tensors are not of this model, such as {extra[0]}"
    wrong = (f"{name} has shape {found[name]}, not {shape}" for name, shape in expected.items() if found[name] != shape)
    return next(wrong, None)


def _block(config: Config) -> Shapes:
    heads = config.n_head * config.head_size
    groups = config.n_query_groups * config.head_size
    whole = config.norm_qk_type == "olmo2"
    shapes = _norm(config, "norm_1", config.norm_1)
    shapes |= _linear("attn.qkv", heads + 2 * groups, config.n_embd, config.bias or config.attn_bias)
    shapes |= _linear("attn.proj", config.n_embd, heads, config.bias)
    shapes |= _norm(config, "attn.norm_q", config.norm_qk, heads if whole else config.head_size)
    shapes |= _norm(config, "attn.norm_k", config.norm_qk, groups if whole else config.head_size)
    shapes |= _norm(config, "post_attention_norm", config.post_attention_norm)
    shapes |= _norm(config, "norm_2", config.norm_2 and not config.shared_attention_norm)
    if config.mlp_class_name == "LLaMAMoE":
        shapes |= _linear("mlp.gate", config.n_expert, config.n_embd, False)
        for expert in range(config.n_expert):
            shapes |= _mlp(config, f"mlp.experts.{expert}", config.moe_intermediate_size or config.intermediate_size)
    else:
        shapes |= _mlp(config, "mlp", config.intermediate_size)
    return shapes | _norm(config, "post_mlp_norm", config.post_mlp_norm)


def _mlp(config: Config, name: str, width: int) -> Shapes:
    shapes: Shapes = {}
    for part in ("fc",) if config.mlp_class_name == "GptNeoxMLP" else ("fc_1", "fc_2"):
        shapes |= _linear(f"{name}.{part}", width, config.n_embd, config.bias)
    return shapes | _linear(f"{name}.proj", config.n_embd, width, config.bias)


def _linear(name: str, rows: int, columns: int, bias: bool) -> Shapes:
    weight: Shapes = {f"{name}.weight": (rows, columns)}
    return weight | {f"{name}.bias": (rows,)} if bias else weight


def _norm(config: Config, name: str, present: bool = True, size: int | None = None) -> Shapes:
    if not present or (config.norm_class_name == "LayerNorm" and "OLMo" in config.name):
        return {}  # OLMo's norms have no parameters, which litgpt tells by the name
    shape = (size or config.n_embd,)
    biased = config.norm_class_name == "LayerNorm" and (not isinstance(config, GPT2Config) or config.norm_bias)
    return {f"{name}.weight": shape, f"{name}.bias": shape} if biased else {f"{name}.weight": shape}


CHUNK_BYTES = 8 << 20


@dataclass(frozen=True)
class Piece:
    """Rows of a stored tensor, with every column or the first few."""

    name: str
    start: int  # of the rows, counted after transposing
    stop: int
    columns: int | None = None  # number of leading columns kept; None keeps all
    transpose: bool = False  # the stored tensor is (columns, rows), as in GPT-2's Conv1D

    @property
    def rows(self) -> int:
        return self.stop - self.start


def select_rows(pieces: list[Piece], ranges: list[tuple[int, int]]) -> list[Piece]:
    """Row ranges of the tensor that ``pieces`` make when stacked, as pieces."""
    selected = []
    for start, stop in ranges:
        position = 0
        for piece in pieces:
            low, high = max(start, position), min(stop, position + piece.rows)
            if low < high:
                shift = piece.start - position
                selected.append(replace(piece, start=low + shift, stop=high + shift))
            position += piece.rows
    return selected


def read_piece(stored: torch.Tensor, piece: Piece, chunk_bytes: int = CHUNK_BYTES) -> Iterator[torch.Tensor]:
    """The piece's values as contiguous tensors of at most about ``chunk_bytes`` bytes, top to bottom."""
    view = (stored.mT if piece.transpose else stored)[piece.start : piece.stop]
    if piece.columns is not None:
        view = view[:, : piece.columns]
    row_bytes = max(1, view[:1].numel() * view.element_size())
    yield from (rows.contiguous() for rows in view.split(max(1, chunk_bytes // row_bytes)))


def describe(pieces: list[Piece], full_shape: Shapes) -> str:
    """Pieces for people: ``a + b[0:64,128:192]``; rows only where not the whole tensor, of ``full_shape``, is taken."""
    words: list[str] = []
    for name, group in groupby(pieces, key=lambda piece: piece.name):
        piece, *_ = run = list(group)
        shape = full_shape[name][::-1] if piece.transpose else full_shape[name]
        whole = len(run) == 1 and (piece.start, piece.stop) == (0, shape[0])
        rows = "" if whole else ",".join(f"{part.start}:{part.stop}" for part in run)
        columns = f"; columns 0:{piece.columns}" if piece.columns not in (None, *shape[1:]) else ""
        inside = f"[{rows or ':'}{columns}]" if rows or columns else ""
        words.append(f"{name}{'.T' if piece.transpose else ''}{inside}")
    return " + ".join(words)
