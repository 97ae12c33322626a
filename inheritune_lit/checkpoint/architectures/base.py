"""What an architecture declares, and the entries of ``config.json`` that most architectures share.

For rotary positions, transformers 4 writes ``rope_theta`` and ``rope_scaling``; transformers 5 writes both into
``rope_parameters``.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from inheritune_lit.checkpoint.architectures.sources import LitTensor, Plain, Source, Stacked, Stored
from inheritune_lit.checkpoint.config import Config, require
from inheritune_lit.checkpoint.tensors import Piece
from inheritune_lit.errors import UserError


def sizes_from_hf(hf: dict[str, Any]) -> dict[str, Any]:
    """Depth, widths, heads and context as litgpt fields.

    Raises:
        UserError: one of them is missing or not a positive number.
    """
    n_head = require(hf, "num_attention_heads")
    return {
        "n_layer": require(hf, "num_hidden_layers"),
        "n_embd": require(hf, "hidden_size"),
        "n_head": n_head,
        "n_query_groups": hf.get("num_key_value_heads") or n_head,
        "head_size": hf.get("head_dim") or require(hf, "hidden_size") // n_head,
        "intermediate_size": require(hf, "intermediate_size"),
        "block_size": require(hf, "max_position_embeddings"),
    }


def sizes_to_hf(config: Config) -> dict[str, Any]:
    """The entries for a litgpt ``Config``; ``head_dim`` is left to architectures that have it."""
    return {
        "num_hidden_layers": config.n_layer,
        "hidden_size": config.n_embd,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.n_query_groups,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.block_size,
    }


def window_from_hf(hf: dict[str, Any], block_size: int) -> int | None:
    """The sliding window, None where there is none.

    A window as long as the context changes nothing, and litgpt's masks are slow.
    """
    window = hf.get("sliding_window")
    return window if window and window < block_size else None


_BLOCK = re.compile(r"^transformer\.h\.(\d+)\.(.+)\.(weight|bias)$")
_OUTER = re.compile(r"^(.+)\.(weight|bias)$")
_EXPERT = re.compile(r"(?<=\.experts\.)\d+(?=\.)")


@dataclass(frozen=True)
class Architecture:
    """One architecture of transformers as litgpt runs it.

    Attributes:
        model_type: ``model_type`` in ``config.json``.
        class_name: transformers' class.
        layer_prefix: prefix of a block's keys, with ``{}`` for the layer.
        outer: litgpt module -> Hugging Face module, outside the blocks.
        block: litgpt module -> how its tensors are stored, in a block; a string is a module with the same tensors.
            ``{}`` stands for an expert's number.
        to_lit: ``config.json`` as litgpt ``Config`` fields, without name and vocabulary.
        to_hf: the ``config.json`` entries that follow from a litgpt ``Config``.
        base_prefix: prefix of everything but the head, left out by files saved from the model without head.
        litgpt_names: pattern of the names that litgpt's own code, which chooses norms and key names by the model's
            name, takes for this architecture.
        litgpt_name: a name of that form.
        describes: tells this from other architectures of the same ``model_type``, by ``config.json``.
        stacked: entries of ``block`` as they are where experts are stored in one tensor.
        bias_switches: module -> the ``config.json`` entry that says whether it has a bias, and the entry's default.
        config_class: litgpt's ``Config`` or a subclass.
        ignored: endings of stored tensors that are not weights, such as masks of old files.
        free_head_size: ``config.json`` can state a head size other than width / heads.
        tied_by_default: what transformers assumes when ``tie_word_embeddings`` is absent.
        residual_modules: modules whose initial deviation shrinks with depth (GPT-2).
        norm_init: how a norm's weight begins: "ones", or "zeros" where the norm adds one to it (Gemma).
    """

    model_type: str
    class_name: str
    base_prefix: str
    layer_prefix: str
    outer: dict[str, str]
    block: dict[str, Source | str]
    to_lit: Callable[[dict[str, Any]], dict[str, Any]]
    to_hf: Callable[[Config], dict[str, Any]]
    litgpt_names: str
    litgpt_name: str
    describes: Callable[[dict[str, Any]], bool] = lambda hf: True
    stacked: dict[str, Source | str] = field(default_factory=dict)
    bias_switches: dict[str, tuple[str, bool]] = field(default_factory=dict)
    config_class: type[Config] = Config
    ignored: tuple[str, ...] = ()
    free_head_size: bool = False
    tied_by_default: bool = False
    residual_modules: frozenset[str] = field(default_factory=frozenset)
    norm_init: str = "ones"

    def has(self, layer: int | None, module: str) -> bool:
        """Whether there is such a litgpt module."""
        return module in self.outer if layer is None else _EXPERT.sub("{}", module) in self.block

    def source(self, module: str) -> Source:
        """How a block's litgpt module is stored."""
        source = self.block[_EXPERT.sub("{}", module)]
        expert = _EXPERT.search(module)
        if isinstance(source, str):
            return Plain(source.format(expert[0]) if expert else source)
        return source.of_expert(int(expert[0])) if expert and isinstance(source, Stacked) else source

    def with_stacked_experts(self) -> "Architecture":
        """The same, read from files where all experts are in one tensor."""
        return replace(self, block={**self.block, **self.stacked}, stacked={})

    def as_stored(self, names: Iterable[str]) -> "Architecture":
        """The same, with experts stored as the names say."""
        endings = tuple(f".{source.name}" for source in self.stacked.values() if isinstance(source, Stacked))
        return self.with_stacked_experts() if any(name.endswith(endings) for name in names if endings) else self


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
        raise UserError(f"unknown tensor name {name}; this is not a litgpt checkpoint of a supported model")
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
    return architecture.source(module).read(LitTensor(name, module, kind, rows, config, prefix))


def lit_pieces(architecture: Architecture, config: Config, name: str, rows: int) -> Stored:
    """The Hugging Face tensors that a litgpt tensor becomes, or is the first part of: the inverse of ``hf_pieces``.

    Args:
        config: configuration of the litgpt model.
        name: litgpt name.
        rows: first dimension of the litgpt tensor.
    """
    layer, module, kind = split_name(name)
    if layer is None:
        return {f"{architecture.outer[module]}.{kind}": [Piece(name, 0, rows)]}
    prefix = architecture.layer_prefix.format(layer)
    source = architecture.source(module)
    assert not isinstance(source, Stacked), "what is written has the published layout"
    return source.write(LitTensor(name, module, kind, rows, config, prefix))


OTHERS = r"(?!.*(falcon|Gemma|OLMo))(?!(?i:phi|qwen2\.5|qwq|qwen3|olmo-2-))"
"""Beginning of a pattern that leaves out every name that litgpt treats specially."""


def litgpt_name(architecture: Architecture, name: str) -> str:
    """The name itself, or one near to it that litgpt takes for this architecture."""
    for candidate in (name, name[:1].upper() + name[1:], f"{architecture.litgpt_name}-{name}"):
        if re.match(architecture.litgpt_names, candidate):
            return candidate
    return architecture.litgpt_name


_LLAMA3 = {
    "factor": "factor",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "original_max_position_embeddings": "original_max_seq_len",
}


def rope_from_hf(hf: dict[str, Any], default_fraction: float = 1.0) -> dict[str, Any]:
    """litgpt's rotary fields.

    Args:
        hf: ``config.json``.
        default_fraction: rotated share of a head where the file does not say.

    Raises:
        UserError: a scaling that litgpt does not compute.
    """
    parameters: dict[str, Any] = {}
    for key in ("rope_scaling", "rope_parameters"):
        if not isinstance(value := hf.get(key) or {}, dict):
            raise UserError(f"config.json: {key} is {value!r}, not an object; get the reference again")
        parameters |= value
    base = parameters.get("rope_theta", hf.get("rope_theta", hf.get("rotary_emb_base", 10000)))
    fraction = parameters.get(
        "partial_rotary_factor", hf.get("partial_rotary_factor", hf.get("rotary_pct", default_fraction))
    )
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    fields: dict[str, Any] = {
        "rope_base": int(base) if float(base).is_integer() else base,
        "rotary_percentage": fraction,
    }
    if kind in ("default", None):
        return fields
    try:
        if kind == "linear":
            return fields | {"rope_adjustments": {"factor": parameters["factor"]}}
        if kind == "llama3":
            return fields | {"rope_adjustments": {lit: parameters[name] for name, lit in _LLAMA3.items()}}
    except KeyError as error:
        raise UserError(f"config.json: rope type {kind} without {error}; get the reference again") from error
    raise UserError(f"config.json: rope type {kind!r} is not supported (default, linear, llama3 are)")


def rope_to_hf(config: Config, partial: bool = False) -> dict[str, Any]:
    """Entries for ``config.json`` that transformers 4 and 5 both read.

    ``rope_theta`` and ``rope_scaling`` are the old names, ``rope_parameters`` the new one.

    Args:
        config: the model.
        partial: the architecture rotates a part of a head only; ``config.json`` says which.
    """
    base, adjustments = float(config.rope_base), config.rope_adjustments
    scaling: dict[str, Any] = {"rope_type": "default"}
    if adjustments is not None:
        kind = "llama3" if "low_freq_factor" in adjustments else "linear"
        back = {lit: name for name, lit in _LLAMA3.items()}
        scaling = {"rope_type": kind} | {back[name]: value for name, value in adjustments.items()}
    fraction = {"partial_rotary_factor": config.rotary_percentage} if partial else {}
    return {
        **fraction,
        "rope_theta": base,
        "rope_scaling": scaling if adjustments is not None else None,
        "rope_parameters": {"rope_theta": base} | fraction | scaling,
    }
