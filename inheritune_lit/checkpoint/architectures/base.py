"""What an architecture declares, read in both directions.

For rotary positions, transformers 4 writes ``rope_theta`` and ``rope_scaling``; transformers 5 writes both into
``rope_parameters``.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from operator import itemgetter
from typing import Any

from inheritune_lit.checkpoint.architectures.sources import LitTensor, Source, Stacked, Stored
from inheritune_lit.checkpoint.config import MOST_BLOCKS, Config, require
from inheritune_lit.checkpoint.folder import HF_CONFIG, MODEL_CONFIG
from inheritune_lit.checkpoint.tensors import Piece, Shapes
from inheritune_lit.errors import UserError


@dataclass(frozen=True)
class Entry:
    """An entry of ``config.json`` that a litgpt field follows.

    Attributes:
        key: its name.
        read: gives the field from ``config.json`` and the name; a size that must be there by default.
        write: gives the entry from the field.
        also: its other name, which is read where the first is missing, and written beside it.
    """

    key: str
    read: Callable[[dict[str, Any], str], Any] = require
    write: Callable[[Any], Any] = lambda value: value
    also: str | None = None

    def field_of(self, hf: dict[str, Any]) -> Any:
        """The litgpt field."""
        if self.also and hf.get(self.key) is None:
            hf = hf | {self.key: hf.get(self.also)}
        return self.read(hf, self.key)


number = partial(require, kind=float)
"""A positive number that must be there."""


def optional(hf: dict[str, Any], key: str, kind: type[int] | type[float] = int) -> Any:
    """A size for which litgpt has a default, with which transformers agrees."""
    return require(hf, key, kind) if hf.get(key) else None


def flag(hf: dict[str, Any], key: str) -> bool:
    """A switch that is off where the entry is missing."""
    return bool(hf.get(key))


def window(hf: dict[str, Any], key: str) -> int | None:
    """A sliding window, None where there is none: one as long as the context changes nothing, and masks are slow."""
    size = optional(hf, key)
    return size if size and size < require(hf, "max_position_embeddings") else None


def head_size(hf: dict[str, Any], key: str) -> int:
    """The width of a head: that of the model divided by the heads where the entry is missing."""
    return optional(hf, key) or require(hf, "hidden_size") // require(hf, "num_attention_heads")


_GELU = {"gelu": "none", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh"}


def _gelu_approximate(hf: dict[str, Any], key: str) -> str:
    if not isinstance(name := hf.get(key), str) or name not in _GELU:
        raise UserError(f"config.json: {key} is {name!r}, only {', '.join(_GELU)} are supported for this architecture")
    return _GELU[name]


def gelu(key: str, tanh: str = "gelu_new") -> Entry:
    """The activation, where it is a GELU; ``tanh`` is what the approximate one is called."""
    return Entry(key, _gelu_approximate, lambda approximate: tanh if approximate == "tanh" else "gelu")


SIZES = {
    "n_layer": Entry("num_hidden_layers"),
    "n_embd": Entry("hidden_size"),
    "n_head": Entry("num_attention_heads"),
    "intermediate_size": Entry("intermediate_size"),
    "block_size": Entry("max_position_embeddings"),
}
"""Depth, widths, heads and context as most architectures call them."""
GROUPED = SIZES | {"n_query_groups": Entry("num_key_value_heads", optional), "head_size": Entry("head_dim", head_size)}
"""The same, with heads that share keys and values, and that are of any size."""


def _check_layers(hf: dict[str, Any], depth: int, windows: bool) -> None:
    """Refuse more layers than there can be, before lists of them are made, and a list of others."""
    if depth > MOST_BLOCKS:
        raise UserError(f"config.json: {depth:,} layers are more than {MOST_BLOCKS:,}; get the reference again")
    kinds = hf.get("layer_types")
    if isinstance(kinds, list) and (len(kinds) != depth or not (windows or set(map(str, kinds)) <= {"full_attention"})):
        raise UserError(
            f"config.json: layer_types names {len(kinds)} layers, such as {str(kinds[-1:])[1:-1]:.40}; {depth} layers"
            " of full attention are expected"
        )


NULL_MEANS_NONE = ("sliding_window", "num_key_value_heads", "attn_logit_softcapping", "final_logit_softcapping")
"""Entries that null switches off, where a missing one has the default of transformers."""


@dataclass(frozen=True)
class Architecture:
    """One architecture of transformers as litgpt runs it.

    Attributes:
        base_prefix: prefix of everything but the head, left out by files saved from the model without head.
        layer_prefix: prefix of a block's keys, with ``{}`` for the layer.
        outer: litgpt module -> Hugging Face module, outside the blocks.
        block: litgpt module -> how its tensors are stored, in a block; a string is a module with the same tensors.
            ``{}`` stands for an expert's number.
        entries: litgpt field -> the entry of ``config.json`` that it follows.
        constants: litgpt fields that are the same for every model.
        fixed: entries with the only value for which litgpt computes the same; where one is missing, it has that value.
        defaults: what transformers assumes for other entries that are missing.
        more_fields: litgpt fields that take more than one entry: from ``config.json`` and the fields so far.
        more_entries: entries that take more than one field: from litgpt's ``Config``.
        partial_rope: heads may be rotated in part only, as an entry says.
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
    entries: dict[str, Entry]
    constants: dict[str, Any]
    litgpt_names: str
    litgpt_name: str
    fixed: dict[str, Any] = field(default_factory=dict)
    defaults: dict[str, Any] = field(default_factory=dict)
    more_fields: Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]] = lambda hf, fields: {}
    more_entries: Callable[[Config], dict[str, Any]] = lambda config: {}
    partial_rope: bool = False
    describes: Callable[[dict[str, Any]], bool] = lambda hf: True
    stacked: dict[str, Source | str] = field(default_factory=dict)
    bias_switches: dict[str, tuple[str, bool]] = field(default_factory=dict)
    config_class: type[Config] = Config
    ignored: tuple[str, ...] = ()
    free_head_size: bool = False
    tied_by_default: bool = False
    residual_modules: frozenset[str] = frozenset()
    norm_init: str = "ones"

    def to_lit(self, hf: dict[str, Any]) -> dict[str, Any]:
        """``config.json`` as fields of litgpt's ``Config``, without name and vocabulary.

        Raises:
            UserError: an entry is missing or damaged, or litgpt would compute something else.
        """
        switches = {key for key, _ in self.bias_switches.values()}
        switches |= {key for key, value in self.defaults.items() if isinstance(value, bool)}  # null is off
        given = {key for key, value in hf.items() if value is not None or key in NULL_MEANS_NONE or key in switches}
        hf = self.defaults | {key: hf[key] for key in given}
        for key, wanted in self.fixed.items():
            value = hf.get(key, wanted)
            if value != wanted and (value is not None or wanted):
                raise UserError(f"config.json: {key} is {value!r}, only {wanted!r} is supported for this architecture")
        # litgpt has one switch for all biases: those the reference lacks become zeros.
        fields = {"bias": any(hf.get(*switch) for switch in self.bias_switches.values())}
        fields |= {name: entry.field_of(hf) for name, entry in self.entries.items()}
        _check_layers(hf, fields["n_layer"], windows="sliding_window_size" in self.entries)
        fields |= rope_from_hf(hf) | self.constants
        return fields | self.more_fields(hf, fields)

    def to_hf(self, config: Config) -> dict[str, Any]:
        """The entries of ``config.json`` that follow from a litgpt ``Config``."""
        entries: dict[str, Any] = {}
        for name, entry in self.entries.items():
            entries |= dict.fromkeys(filter(None, (entry.key, entry.also)), entry.write(getattr(config, name)))
        if not self.free_head_size:
            entries.pop("head_dim", None)
        entries |= self.fixed | {key: config.bias for key, _ in self.bias_switches.values()}
        if config.rotary_percentage:
            entries |= rope_to_hf(config, self.partial_rope)
        return entries | self.more_entries(config)

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


_NAME = re.compile(r"^(?:transformer\.h\.(\d+)\.)?(.+)\.(weight|bias)$")
_EXPERT = re.compile(r"(?<=\.experts\.)\d+(?=\.)")


def split_name(name: str) -> tuple[int | None, str, str]:
    """``transformer.h.3.attn.qkv.weight`` -> ``(3, "attn.qkv", "weight")``; layer None outside the blocks."""
    match = _NAME.match(name)
    if match is None:
        raise UserError(f"unknown tensor name {name}; this is not a litgpt checkpoint of a supported model")
    return int(match[1]) if match[1] else None, match[2], match[3]


def hf_pieces(architecture: Architecture, config: Config, name: str, rows: int) -> list[Piece]:
    """Where a litgpt tensor with this many rows comes from in the Hugging Face files of the model.

    Raises:
        UserError: the architecture has no such tensor.
    """
    layer, module, kind = split_name(name)
    expert = _EXPERT.search(module)
    try:
        if layer is None:
            return [Piece(f"{architecture.outer[module]}.{kind}", 0, rows)]
        source = architecture.block[_EXPERT.sub("{}", module)]
    except KeyError as error:
        raise UserError(
            f"{name} is not a tensor of {architecture.class_name}: {HF_CONFIG} does not fit {MODEL_CONFIG};"
            " get the checkpoint again"
        ) from error
    prefix = architecture.layer_prefix.format(layer)
    lit = LitTensor(kind, rows, config, prefix, int(expert[0]) if expert else 0)
    return (Stored(source) if isinstance(source, str) else source).pieces(lit)


def hf_tensors(architecture: Architecture, config: Config, shapes: Shapes) -> dict[str, list[Piece]]:
    """The Hugging Face tensors that litgpt's, of these shapes, become: the inverse of ``hf_pieces``.

    Returns:
        Hugging Face name -> pieces of litgpt tensors, from top to bottom.
    """
    placed: dict[str, list[tuple[int, Piece]]] = {}
    for name, shape in shapes.items():
        row = 0
        for piece in hf_pieces(architecture, config, name, shape[0]):
            start, stop = (0, shape[1]) if piece.transpose else (row, row + piece.rows)
            placed.setdefault(piece.name, []).append((piece.start, Piece(name, start, stop, transpose=piece.transpose)))
            row += piece.rows
    return {name: [piece for _, piece in sorted(pieces, key=itemgetter(0))] for name, pieces in placed.items()}


OTHERS = r"(?!.*(falcon|Gemma|OLMo))(?!(?i:phi|qwen2\.5|qwq|qwen3|olmo-2-))"
"""Beginning of a pattern that leaves out every name that litgpt treats specially."""


def litgpt_name(architecture: Architecture, name: str) -> str:
    """The name itself, or one near to it that litgpt takes for this architecture."""
    candidates = (name, name[:1].upper() + name[1:], f"{architecture.litgpt_name}-{name}")
    return next((near for near in candidates if re.match(architecture.litgpt_names, near)), architecture.litgpt_name)


_SCALINGS = ("rope_scaling", "rope_parameters")
_LLAMA3 = {
    "factor": "factor",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "original_max_position_embeddings": "original_max_seq_len",
}


def rope_from_hf(hf: dict[str, Any]) -> dict[str, Any]:
    """litgpt's rotary fields.

    Raises:
        UserError: a scaling that litgpt does not compute.
    """
    rope: dict[str, Any] = {}
    names = ("rotary_emb_base", "rope_theta", "rotary_pct", "partial_rotary_factor")
    for key, value in ({"": {name: hf.get(name) for name in names}} | {key: hf.get(key) for key in _SCALINGS}).items():
        if not isinstance(value := value or {}, dict):
            raise UserError(f"config.json: {key} is {value!r}, not an object; get the reference again")
        rope |= {entry: each for entry, each in value.items() if each is not None}  # null says nothing
    kind = rope.get("rope_type", rope.get("type", "default"))
    base, share = (
        require(rope | {new: rope.get(new, rope.get(old, default))}, new, float)
        for new, old, default in (
            ("rope_theta", "rotary_emb_base", 10000),
            ("partial_rotary_factor", "rotary_pct", 1.0),
        )
    )
    fields: dict[str, Any] = {"rope_base": int(base) if float(base).is_integer() else base, "rotary_percentage": share}
    if kind == "default":
        return fields
    scaled = {"linear": {"factor": "factor"}, "llama3": _LLAMA3}.get(kind if isinstance(kind, str) else "")
    if scaled:
        return fields | {"rope_adjustments": {lit: require(rope, name, float) for name, lit in scaled.items()}}
    raise UserError(f"config.json: rope type {kind!r} is not supported (default, linear, llama3 are)")


def rope_to_hf(config: Config, partial: bool = False) -> dict[str, Any]:
    """Entries for ``config.json`` that transformers 4 and 5 both read; ``partial``: with the rotated share of a head.

    ``rope_theta`` and ``rope_scaling`` are the old names, ``rope_parameters`` the new one.
    """
    base, adjustments, scaling = {"rope_theta": float(config.rope_base)}, config.rope_adjustments, None
    fraction = {"partial_rotary_factor": config.rotary_percentage} if partial else {}
    if adjustments is not None:
        scaling = {name: adjustments[lit] for name, lit in _LLAMA3.items() if lit in adjustments}
        scaling["rope_type"] = "llama3" if "low_freq_factor" in adjustments else "linear"
    parameters = base | fraction | (scaling or {"rope_type": "default"})
    return fraction | base | {"rope_scaling": scaling, "rope_parameters": parameters}
