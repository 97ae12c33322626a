"""What an architecture declares, read in both directions."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from operator import itemgetter
from typing import Any

from inheritune_lit.checkpoint.config import MOST_BLOCKS, Config, require
from inheritune_lit.checkpoint.folder import HF_CONFIG, MODEL_CONFIG
from inheritune_lit.checkpoint.tensors import Piece, Shapes
from inheritune_lit.errors import UserError


@dataclass(frozen=True)
class Entry:
    """An entry of ``config.json`` that a litgpt field follows."""

    key: str
    read: Callable[[dict[str, Any], str], Any] = require  # the field, from ``config.json`` and the entry's name
    write: Callable[[Any], Any] = lambda value: value  # the entry, from the field
    also: str | None = None  # its other name, which is read where the first is missing, and written beside it


real = partial(require, kind=float)  # a positive number that must be there


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


SIZES = {  # depth, widths, heads and context as most architectures call them
    "n_layer": Entry("num_hidden_layers"),
    "n_embd": Entry("hidden_size"),
    "n_head": Entry("num_attention_heads"),
    "intermediate_size": Entry("intermediate_size"),
    "block_size": Entry("max_position_embeddings"),
}
GROUPED = SIZES | {"n_query_groups": Entry("num_key_value_heads", optional), "head_size": Entry("head_dim", head_size)}
"""The same, with heads that share keys and values, and that are of any size."""


_MEANS = {"use_bidirectional_attention": "it is not causal"}
_MEANS |= dict.fromkeys(("mlp_only_layers", "decoder_sparse_step"), "it has layers without experts")
"""What entries say with another value than the supported one, where their names do not tell."""
NULL_MEANS_NONE = ("sliding_window", "num_key_value_heads", "attn_logit_softcapping", "final_logit_softcapping")
"""Entries that null switches off, where a missing one has the default of transformers."""


@dataclass(frozen=True)
class Stored:
    """Where a litgpt tensor of a block lies in a Hugging Face tensor that is not simply the same."""

    name: str  # the Hugging Face module; ``{}`` stands for an expert's number
    part: int = 0  # which of the tensors of equal size that lie below each other there (Phi-3's gate_up_proj)
    transposed: bool = False  # a weight is stored (in, out) where litgpt's is (out, in) (GPT-2's Conv1D)
    interleaved: bool = False  # q, k and v of group 0, then those of group 1, ... (GPT-NeoX, Falcon)


Source = str | tuple[str, str, str] | Stored
"""How a litgpt tensor of a block is stored: the Hugging Face module with the same tensors, those of q, k and v, or
``Stored``."""


@dataclass(frozen=True)
class Architecture:
    """One architecture of transformers as litgpt runs it."""

    model_type: str
    class_name: str
    layer_prefix: str  # of a block's keys, with ``{}`` for the layer
    outer: dict[str, str]  # litgpt module -> Hugging Face module, outside the blocks
    block: dict[str, Source]  # litgpt module of a block, with ``{}`` for an expert's number -> how it is stored
    entries: dict[str, Entry]  # litgpt field -> the entry of ``config.json`` that it follows
    constants: dict[str, Any]  # litgpt fields that are the same for every model
    litgpt_name: str  # one that litgpt, which chooses norms and key names by the model's name, takes for this one
    litgpt_names: str = r"(?!.*(falcon|Gemma|OLMo))(?!(?i:phi|qwen2\.5|qwq|qwen3|olmo-2-))"
    """Pattern of all such names: by default those that litgpt does not treat specially."""
    fixed: dict[str, Any] = field(default_factory=dict)
    """Entries with the only value for which litgpt computes the same; where one is missing, it has that value."""
    defaults: dict[str, Any] = field(default_factory=dict)  # of transformers, for other entries that are missing
    more_fields: Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]] = lambda hf, fields: {}
    """litgpt fields that take more than one entry: from ``config.json`` and the fields so far."""
    more_entries: Callable[[Config], dict[str, Any]] = lambda config: {}  # that take more than one litgpt field
    partial_rope: bool = False  # heads may be rotated in part only, as an entry says
    describes: Callable[[dict[str, Any]], bool] = lambda hf: True
    """Tells this from other architectures of the same ``model_type``, by ``config.json``."""
    bias_switches: dict[str, tuple[str, bool]] = field(default_factory=dict)
    """"attn" or "mlp" -> the entry of ``config.json`` that says whether its modules have biases, and its default."""
    config_class: type[Config] = Config
    ignored: tuple[str, ...] = ()  # endings of stored tensors that are not weights, such as masks of old files
    free_head_size: bool = False  # ``config.json`` can state a head size other than width / heads
    tied_by_default: bool = False  # what transformers assumes without ``tie_word_embeddings``
    residual_modules: frozenset[str] = frozenset()  # whose initial deviation shrinks with depth (GPT-2)
    norm_init: str = "ones"  # how a norm's weight begins: "zeros" where the norm adds one to it (Gemma)

    def to_lit(self, hf: dict[str, Any]) -> dict[str, Any]:
        """``config.json`` as litgpt's fields, but name and vocabulary; what it would compute otherwise is refused."""
        off = {*NULL_MEANS_NONE, *(key for key, _ in self.bias_switches.values())}
        off |= {key for key, value in self.defaults.items() if isinstance(value, bool)}
        hf = self.defaults | {key: value for key, value in hf.items() if value is not None or key in off}
        for key, wanted in self.fixed.items():
            value = hf.get(key, wanted)
            if value != wanted and (value is not None or wanted):
                given = f"{value!r} ({_MEANS[key]})" if key in _MEANS else repr(value)
                raise UserError(f"config.json: {key} is {given}, only {wanted!r} is supported for this architecture")
        # litgpt has one switch for all biases: those the reference lacks become zeros.
        fields: dict[str, Any] = {"bias": any(hf.get(*switch) for switch in self.bias_switches.values())}
        for name, entry in self.entries.items():
            other = {entry.key: hf.get(entry.also)} if entry.also and hf.get(entry.key) is None else {}
            fields[name] = entry.read(hf | other, entry.key)
        _check_layers(hf, fields["n_layer"], windows="sliding_window_size" in self.entries)
        fields |= rope_from_hf(hf) | self.constants
        return fields | self.more_fields(hf, fields)

    def to_hf(self, config: Config) -> dict[str, Any]:
        """The entries of ``config.json`` that follow from a litgpt ``Config``."""
        entries: dict[str, Any] = {"architectures": [self.class_name], "model_type": self.model_type}
        entries["vocab_size"] = config.padded_vocab_size
        for name, entry in self.entries.items():
            entries |= dict.fromkeys(filter(None, (entry.key, entry.also)), entry.write(getattr(config, name)))
        if not self.free_head_size:
            entries.pop("head_dim", None)
        entries |= self.fixed | {key: config.bias for key, _ in self.bias_switches.values()}
        if config.rotary_percentage:
            entries |= rope_to_hf(config, self.partial_rope)
        return entries | self.more_entries(config)


def _check_layers(hf: dict[str, Any], depth: int, windows: bool) -> None:
    """Refuse more layers than there can be, before lists of them are made, and a list of others."""
    if depth > MOST_BLOCKS:
        raise UserError(f"config.json: {depth:,} layers are more than {MOST_BLOCKS:,}; get the reference again")
    kinds = hf.get("layer_types")
    if isinstance(kinds, list) and (len(kinds) != depth or not (windows or set(map(str, kinds)) <= {"full_attention"})):
        named = f"{len(kinds)} layers, such as {str(kinds[-1:])[1:-1]:.40}"
        raise UserError(f"config.json: layer_types names {named}; {depth} layers of full attention are expected")


def like(base: Architecture, without: Iterable[str] = (), **changes: Any) -> Architecture:
    """One that differs: none of its dictionaries has the keys ``without``, and those of ``changes`` are added."""
    for name, value in vars(base).items():
        if isinstance(value, dict):
            changes[name] = {key: value[key] for key in value if key not in without} | changes.get(name, {})
    return replace(base, **changes)


def full_name(architecture: Architecture, names: Iterable[str]) -> Callable[[str], str]:
    """How to write stored names in full: files saved from the model without its head leave the prefix out."""
    prefix = architecture.layer_prefix[: architecture.layer_prefix.index(".") + 1]
    if any(name.startswith(prefix) for name in names):
        return lambda name: name
    heads = tuple(f"{hf}." for hf in architecture.outer.values() if not hf.startswith(prefix))
    return lambda name: name if name.startswith(heads) else prefix + name


def qkv_rows(config: Config) -> tuple[int, int, int]:
    """Rows of q, k and v in litgpt's fused tensor."""
    return config.n_head * config.head_size, *(config.n_query_groups * config.head_size,) * 2


def _interleaved(config: Config, rows: int) -> list[tuple[int, int]]:
    """Rows of all q, all k and all v where those of each group stand together."""
    size, of_group = config.head_size, rows // config.n_query_groups
    q = [(start, start + of_group - 2 * size) for start in range(0, rows, of_group)]
    k = [(stop, stop + size) for _, stop in q]
    return q + k + [(stop, stop + size) for _, stop in k]


_NAME = re.compile(r"^(?:transformer\.h\.(\d+)\.)?(.+)\.(weight|bias)$")
_EXPERT = re.compile(r"(?<=\.experts\.)\d+(?=\.)")


def split_name(name: str) -> tuple[int | None, str, str]:
    """``transformer.h.3.attn.qkv.weight`` -> ``(3, "attn.qkv", "weight")``; layer None outside the blocks."""
    match = _NAME.match(name)
    if match is None:
        raise UserError(f"unknown tensor name {name}; this is not a litgpt checkpoint of a supported model")
    return int(match[1]) if match[1] else None, match[2], match[3]


def hf_pieces(architecture: Architecture, config: Config, name: str, rows: int) -> list[Piece]:
    """Where a litgpt tensor of so many rows comes from in Hugging Face files; a ``UserError`` for others."""
    layer, module, kind = split_name(name)
    found = _EXPERT.search(module)
    try:
        if layer is None:
            return [Piece(f"{architecture.outer[module]}.{kind}", 0, rows)]
        source = architecture.block[_EXPERT.sub("{}", module)]
    except KeyError as error:
        problem = f"{HF_CONFIG} does not fit {MODEL_CONFIG}; get the checkpoint again"
        raise UserError(f"{name} is not a tensor of {architecture.class_name}: {problem}") from error
    prefix = architecture.layer_prefix.format(layer)
    if isinstance(source, tuple):
        parts = zip(source, qkv_rows(config), strict=True)
        return [Piece(f"{prefix}{part}.{kind}", 0, size) for part, size in parts]
    if isinstance(source, str):
        source = Stored(source)
    stored = f"{prefix}{source.name.format(found[0] if found else '')}.{kind}"
    if source.interleaved and config.n_query_groups > 1:  # the order of one group is litgpt's
        return [Piece(stored, *ends) for ends in _interleaved(config, rows)]
    start = source.part * rows
    return [Piece(stored, start, start + rows, transpose=source.transposed and kind == "weight")]


def hf_tensors(architecture: Architecture, config: Config, shapes: Shapes) -> dict[str, list[Piece]]:
    """The Hugging Face tensors for litgpt's of these shapes, as pieces from top to bottom: ``hf_pieces`` inverted."""
    placed: dict[str, list[tuple[int, Piece]]] = {}
    for name, shape in shapes.items():
        row = 0
        for piece in hf_pieces(architecture, config, name, shape[0]):
            start, stop = (0, shape[1]) if piece.transpose else (row, row + piece.rows)
            placed.setdefault(piece.name, []).append((piece.start, Piece(name, start, stop, transpose=piece.transpose)))
            row += piece.rows
    return {name: [piece for _, piece in sorted(pieces, key=itemgetter(0))] for name, pieces in placed.items()}


def litgpt_name(architecture: Architecture, name: str) -> str:
    """The name itself, or one near to it that litgpt takes for this architecture."""
    candidates = (name, name[:1].upper() + name[1:], f"{architecture.litgpt_name}-{name}")
    return next((near for near in candidates if re.match(architecture.litgpt_names, near)), architecture.litgpt_name)


_ROPE_NAMES = {"rotary_emb_base": "rope_theta", "rotary_pct": "partial_rotary_factor"}
_ROPE_NAMES |= {name: name for name in _ROPE_NAMES.values()}
_LLAMA3 = {name: name for name in ("factor", "low_freq_factor", "high_freq_factor")}
_LLAMA3 |= {"original_max_position_embeddings": "original_max_seq_len"}


def rope_from_hf(hf: dict[str, Any]) -> dict[str, Any]:
    """litgpt's rotary fields, from the entries of transformers 4 or 5; a scaling that litgpt lacks is refused."""
    rope: dict[str, Any] = {"rope_theta": 10000, "partial_rotary_factor": 1.0}
    rope |= {new: hf[name] for name, new in _ROPE_NAMES.items() if hf.get(name) is not None}
    for key in ("rope_scaling", "rope_parameters"):
        if not isinstance(value := hf.get(key) or {}, dict):
            raise UserError(f"config.json: {key} is {value!r}, not an object; get the reference again")
        rope |= {entry: each for entry, each in value.items() if each is not None}  # null says nothing
    kind = rope.get("rope_type", rope.get("type", "default"))
    base, share = (require(rope, name, float) for name in ("rope_theta", "partial_rotary_factor"))
    fields: dict[str, Any] = {"rope_base": int(base) if float(base).is_integer() else base, "rotary_percentage": share}
    scalings: dict[str, dict[str, str]] = {"default": {}, "linear": {"factor": "factor"}, "llama3": _LLAMA3}
    if not isinstance(kind, str) or kind not in scalings:
        raise UserError(f"config.json: rope type {kind!r} is not supported ({', '.join(scalings)} are)")
    scaled = {lit: require(rope, name, float) for name, lit in scalings[kind].items()}
    return fields | ({"rope_adjustments": scaled} if scaled else {})


def rope_to_hf(config: Config, partial: bool = False) -> dict[str, Any]:
    """Entries for ``config.json`` that transformers 4 and 5 read; ``partial``: with the rotated share of a head."""
    base, adjustments, scaling = {"rope_theta": float(config.rope_base)}, config.rope_adjustments, None
    fraction = {"partial_rotary_factor": config.rotary_percentage} if partial else {}
    if adjustments is not None:
        scaling = {name: adjustments[lit] for name, lit in _LLAMA3.items() if lit in adjustments}
        scaling["rope_type"] = "llama3" if "low_freq_factor" in adjustments else "linear"
    parameters = base | fraction | (scaling or {"rope_type": "default"})
    return fraction | base | {"rope_scaling": scaling, "rope_parameters": parameters}
