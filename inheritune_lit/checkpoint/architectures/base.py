"""What an architecture's table has to say."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from inheritune_lit.checkpoint.litgpt_config import Config
from inheritune_lit.checkpoint.pieces import Piece, merge, select_rows
from inheritune_lit.errors import UserError

_BLOCK = re.compile(r"^transformer\.h\.(\d+)\.(.+)\.(weight|bias)$")
_OUTER = re.compile(r"^(.+)\.(weight|bias)$")


@dataclass(frozen=True)
class Split:
    """litgpt's fused qkv is q, k and v of the Hugging Face model, one below the other."""

    q: str
    k: str
    v: str


@dataclass(frozen=True)
class Interleaved:
    """The Hugging Face tensor holds q, k and v of head 0, then those of head 1, ... (GPT-NeoX)."""

    name: str


@dataclass(frozen=True)
class Transposed:
    """The Hugging Face tensor is (in, out) where litgpt's is (out, in); biases are the same (GPT-2's Conv1D)."""

    name: str


Source = str | Split | Interleaved | Transposed


@dataclass(frozen=True)
class Architecture:
    """One architecture of transformers as litgpt runs it.

    Attributes:
        model_types: ``model_type`` values of ``config.json``; the first one is written on export.
        class_name: transformers' class.
        layer_prefix: prefix of a block's keys, with ``{}`` for the layer.
        outer: litgpt module -> Hugging Face module, outside the blocks.
        block: litgpt module -> Hugging Face module(s), in a block.
        to_lit: ``config.json`` as litgpt ``Config`` fields, without name and vocabulary.
        to_hf: the ``config.json`` entries that follow from a litgpt ``Config``.
        base_prefix: prefix of everything but the head, left out by files saved from the model without head.
        bias_switches: module -> the ``config.json`` entry that says whether it has a bias, and the entry's default.
        config_class: litgpt's ``Config`` or a subclass.
        ignored: endings of stored tensors that are no weights, such as masks of old files.
        free_head_size: ``config.json`` can state a head size other than width / heads.
        tied_by_default: what transformers assumes when ``tie_word_embeddings`` is absent.
        residual_modules: modules whose initial deviation shrinks with depth (GPT-2).
        litgpt_prefixes: how litgpt's own converters recognise the name; empty for their default branch.
    """

    model_types: tuple[str, ...]
    class_name: str
    base_prefix: str
    layer_prefix: str
    outer: dict[str, str]
    block: dict[str, Source]
    to_lit: Callable[[dict[str, Any]], dict[str, Any]]
    to_hf: Callable[[Config], dict[str, Any]]
    bias_switches: dict[str, tuple[str, bool]] = field(default_factory=dict)
    config_class: type[Config] = Config
    ignored: tuple[str, ...] = ()
    free_head_size: bool = False
    tied_by_default: bool = False
    residual_modules: frozenset[str] = field(default_factory=frozenset)
    litgpt_prefixes: tuple[str, ...] = ()


def full_name(architecture: Architecture, names: Iterable[str]) -> Callable[[str], str]:
    """How to write stored names in full: files saved from the model without its head leave the prefix out."""
    prefix = architecture.base_prefix
    if any(name.startswith(prefix) for name in names):
        return lambda name: name
    heads = tuple(f"{hf}." for hf in architecture.outer.values() if not hf.startswith(prefix))
    return lambda name: name if name.startswith(heads) else prefix + name


def split_name(name: str) -> tuple[int | None, str, str]:
    """``transformer.h.3.attn.qkv.weight`` -> ``(3, "attn.qkv", "weight")``; layer None outside the blocks."""
    if match := _BLOCK.match(name):
        return int(match[1]), match[2], match[3]
    match = _OUTER.match(name)
    if match is None:
        raise UserError(f"unknown tensor name {name}; this is no litgpt checkpoint of a supported model")
    return None, match[1], match[2]


def hf_pieces(architecture: Architecture, config: Config, name: str, rows: int) -> list[Piece]:
    """Where a litgpt tensor of the reference comes from in its Hugging Face files.

    Args:
        config: the reference's configuration.
        name: litgpt name.
        rows: first dimension of the litgpt tensor.
    """
    layer, module, kind = split_name(name)
    if layer is None:
        return [Piece(f"{architecture.outer[module]}.{kind}", 0, rows)]
    prefix = architecture.layer_prefix.format(layer)
    source = architecture.block[module]
    if isinstance(source, Split):
        sizes = qkv_rows(config)
        parts = zip((source.q, source.k, source.v), sizes, strict=True)
        return [Piece(f"{prefix}{part}.{kind}", 0, size) for part, size in parts]
    if isinstance(source, Interleaved):
        stored = [Piece(f"{prefix}{source.name}.{kind}", 0, rows)]
        return merge(select_rows(stored, interleaved_ranges(config)))
    if isinstance(source, Transposed):
        return [Piece(f"{prefix}{source.name}.{kind}", 0, rows, transpose=kind == "weight")]
    return [Piece(f"{prefix}{source}.{kind}", 0, rows)]


def qkv_rows(config: Config) -> tuple[int, int, int]:
    """Rows of q, k and v in litgpt's fused tensor."""
    return config.n_head * config.head_size, *(config.n_query_groups * config.head_size,) * 2


def interleaved_ranges(config: Config) -> list[tuple[int, int]]:
    """Rows of an interleaved qkv tensor in litgpt's order: all q, then all k, then all v."""
    size, per_group = config.head_size, config.n_head // config.n_query_groups
    group_rows = (per_group + 2) * size
    starts = [group * group_rows for group in range(config.n_query_groups)]
    q_rows = per_group * size
    return [
        *((start, start + q_rows) for start in starts),
        *((start + q_rows, start + q_rows + size) for start in starts),
        *((start + q_rows + size, start + q_rows + 2 * size) for start in starts),
    ]


def lit_pieces(architecture: Architecture, config: Config, name: str, rows: int) -> dict[str, list[Piece]]:
    """The Hugging Face tensors that a litgpt tensor becomes: the inverse of ``hf_pieces``.

    Args:
        config: configuration of the litgpt model.
        name: litgpt name.
        rows: first dimension of the litgpt tensor.
    """
    whole = [Piece(name, 0, rows)]
    layer, module, kind = split_name(name)
    if layer is None:
        return {f"{architecture.outer[module]}.{kind}": whole}
    prefix = architecture.layer_prefix.format(layer)
    source = architecture.block[module]
    if isinstance(source, Split):
        q, k, _ = qkv_rows(config)
        bounds = ((0, q), (q, q + k), (q + k, rows))
        parts = zip((source.q, source.k, source.v), bounds, strict=True)
        return {f"{prefix}{part}.{kind}": select_rows(whole, [bound]) for part, bound in parts}
    if isinstance(source, Interleaved):
        # Position of every stored row in litgpt's order, group by group.
        targets = interleaved_ranges(config)
        position, placed = 0, []
        for start, stop in targets:
            placed.append((start, (position, position + stop - start)))
            position += stop - start
        return {f"{prefix}{source.name}.{kind}": select_rows(whole, [lit for _, lit in sorted(placed)])}
    if isinstance(source, Transposed):
        if kind == "bias":
            return {f"{prefix}{source.name}.{kind}": whole}
        return {f"{prefix}{source.name}.{kind}": [Piece(name, 0, config_columns(config, module), transpose=True)]}
    return {f"{prefix}{source}.{kind}": whole}


def config_columns(config: Config, module: str) -> int:
    """Input size of a block's linear module."""
    if module == "attn.proj":
        return config.n_head * config.head_size
    return config.intermediate_size if module == "mlp.proj" else config.n_embd
