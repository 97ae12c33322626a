"""The plan of a slice: which tensor of the reference, or which fresh values, fill a student's. No weights move here."""

from dataclasses import dataclass, replace
from typing import Any

import torch

from inheritune_lit.checkpoint import tensors
from inheritune_lit.checkpoint.architectures.base import qkv_rows, split_name
from inheritune_lit.checkpoint.config import Config, GPT2Config, carried, require
from inheritune_lit.checkpoint.weights import Weights
from inheritune_lit.errors import UserError
from inheritune_lit.inherit.args import SliceArgs, layer_map
from inheritune_lit.inherit.reference import ReferenceModel


@dataclass(frozen=True)
class FreshValues:
    """Fresh values: normal with standard deviation ``std``, or a constant."""

    kind: str
    std: float = 0.0

    def __str__(self) -> str:
        return f"normal(0, {self.std:g})" if self.kind == "normal" else self.kind


@dataclass(frozen=True)
class TensorPlan:
    """One student tensor and what fills it: fresh values, or pieces of stored tensors, stacked top to bottom."""

    spec: tensors.TensorSpec
    source: tuple[tensors.Piece, ...] | FreshValues
    words: str  # the source for people
    weights: Weights | None = None  # those that the pieces are of, when they are opened
    map_CC: torch.Tensor | None = None  # of the outputs that the tensor makes, fp32; None leaves it as it is


@dataclass
class Plan:
    """A student model and where its tensors come from."""

    config: Config
    hf: dict[str, Any]  # its ``config.json`` but for the dtype
    layers: list[int] | None  # the reference's layer behind each student layer; None where nothing is inherited
    tensors: dict[str, TensorPlan]  # every student tensor, in the order of the file
    aliases: dict[str, str]  # names that share another tensor's storage: the tied head
    seed: int  # of the initialisers
    repair: str | None = None  # how tensors got their maps

    @property
    def name(self) -> str:
        """The student's name; litgpt's configuration may have another, by which litgpt chooses its norms."""
        return self.config.hf_config["name"]

    def parameters(self, embeddings: bool = True) -> int:
        """Number of parameters, a tied head counted once; or those without token embedding, learned positions, head."""
        return tensors.count_parameters({name: tensor.spec.shape for name, tensor in self.tensors.items()}, embeddings)

    @property
    def nbytes(self) -> int:
        """Bytes of the student's weights."""
        return sum(tensor.spec.nbytes for tensor in self.tensors.values())

    @property
    def dtype(self) -> str:
        """Floating-point type of the token embedding, such as "bfloat16"."""
        return str(self.tensors[tensors.EMBEDDING].spec.dtype).removeprefix("torch.")

    def sources(self) -> dict[str, str]:
        """Student tensor -> what feeds it, in words."""
        words = {name: tensor.words for name, tensor in self.tensors.items()}
        return words | {name: f"tied to {target}" for name, target in self.aliases.items()}


def student_config(reference: ReferenceModel, args: SliceArgs) -> tuple[Config, list[int]]:
    """A student's configuration and the reference's layer behind each of its own; bad arguments are a ``UserError``."""
    config = reference.config
    layers = layer_map(args, config.n_layer)
    if reference.tied and args.embeddings != args.head:
        raise UserError("the reference's head is tied to its embeddings; switch --embeddings and --head together")
    if not args.positions and not isinstance(config, GPT2Config):
        raise UserError(f"--positions false: {reference.name} has no learned positions; leave it out")
    changes: dict[str, Any] = {
        field: [value[layer] for layer in layers]
        for field in ("sliding_window_indices", "rope_indices")
        if (value := getattr(config, field)) is not None
    }
    if isinstance(config, GPT2Config):
        keep = config.scale_attn_by_inverse_layer_idx and args.attn_scale == "keep" and args.init != "random"
        changes["attn_scale_layers"] = [config.attention_divisor(layer) - 1 for layer in layers] if keep else None
    suffix = f"-{len(layers)}l" + ("-half-width" if args.init == "half-width" else "")
    changes["hf_config"] = {**config.hf_config, "name": reference.name + suffix}
    config = replace(config, name=config.name + suffix, n_layer=len(layers), **changes)
    if args.init == "half-width":
        config = half_width_config(config)
        if config.n_embd != config.n_head * config.head_size and not reference.architecture.free_head_size:
            heads = f"{reference.config.n_head} heads of size {config.head_size} cannot be halved"
            remedy = "this architecture ties head size to width; choose another --init"
            raise UserError(f"--init half-width: {heads}, and {remedy}")
    return config, layers


def inherited_names(reference: ReferenceModel, args: SliceArgs) -> set[str]:
    """litgpt names of the reference's tensors that the student takes something of; no weights are needed."""
    config, layers = student_config(reference, args)
    sources = (_source_name(name, layers, args) for name in tensors.tensor_shapes(config, reference.tied))
    return set(filter(None, sources))


def build_plan(reference: ReferenceModel, args: SliceArgs) -> Plan:
    """Plan a student of a reference, with weights or without; what does not fit together is a ``UserError``."""
    config, layers = student_config(reference, args)
    default, stored_shapes = reference.dtype, reference.stored_shapes()
    planned: dict[str, TensorPlan] = {}
    for name, shape in tensors.tensor_shapes(config, reference.tied).items():
        source = _source_name(name, layers, args)
        pieces = reference.pieces(source) if source is not None else None
        if pieces is None:
            fresh = FreshValues("zeros") if source is not None else _initialiser(reference, config, name)
            planned[name] = TensorPlan(tensors.TensorSpec(shape, default), fresh, str(fresh))
            continue
        if args.init == "half-width":
            pieces = _narrow(split_name(name)[1], pieces, shape, reference.config, config)
        dtypes = {reference.weights.specs[piece.name].dtype for piece in pieces} if reference.weights else {default}
        if len(dtypes) > 1:
            raise UserError(f"{pieces[0].name} and {pieces[-1].name} have different dtypes; get the reference again")
        spec = tensors.TensorSpec(shape, dtypes.pop())
        planned[name] = TensorPlan(spec, tuple(pieces), tensors.describe(pieces, stored_shapes), reference.weights)
    inherits = any(isinstance(tensor.source, tuple) for tensor in planned.values())
    hf = carried(reference.hf) | reference.architecture.to_hf(config) | {"tie_word_embeddings": reference.tied}
    aliases = {tensors.HEAD: tensors.EMBEDDING} if reference.tied else {}
    return Plan(config, hf, layers if inherits else None, planned, aliases, args.seed)


def _source_name(name: str, layers: list[int], args: SliceArgs) -> str | None:
    """The reference's litgpt tensor behind a student's, None where it is initialised afresh."""
    if args.init == "random":
        return None
    layer, module, kind = split_name(name)
    if layer is None:
        wanted = {"lm_head": args.head, "transformer.ln_f": args.final_norm, "transformer.wpe": args.positions}
        return name if wanted.get(module, args.embeddings) else None
    child = module.partition(".")[0]
    part = "norm" if "norm" in child else child
    return f"transformer.h.{layers[layer]}.{module}.{kind}" if part in args.inherited_parts else None


def _initialiser(reference: ReferenceModel, config: Config, name: str) -> FreshValues:
    """The architecture's own scheme: normal weights, norms at one, biases at zero."""
    _, module, kind = split_name(name)
    if kind == "bias":
        return FreshValues("zeros")
    if "norm" in module or module == "transformer.ln_f":
        return FreshValues(reference.architecture.norm_init)
    stated = reference.hf.get("initializer_range")
    std = 0.02 if stated is None else require(reference.hf, "initializer_range", float)
    if module in reference.architecture.residual_modules:
        std /= (2 * config.n_layer) ** 0.5
    return FreshValues("normal", std)


def half_width_config(config: Config) -> Config:
    """The configuration at half the width, where embedding and MLP size are even and there are no experts.

    Query groups are halved, rounding up, and keep head size and number of heads; one group's heads are halved.
    """
    if config.mlp_class_name == "LLaMAMoE":
        # Half of the experts, or all of them at half their width? The router's choice would be another either way.
        raise UserError("--init half-width is not defined for a mixture of experts; choose another --init")
    sizes = {field: getattr(config, field) for field in ("n_embd", "intermediate_size")}
    for field, size in sizes.items():
        if size % 2:
            raise UserError(f"--init half-width: {field} of the reference is {size}, which is odd")
    groups = -(-config.n_query_groups // 2)
    heads = groups * (config.n_head // config.n_query_groups) if config.n_query_groups > 1 else -(-config.n_head // 2)
    return replace(config, n_head=heads, n_query_groups=groups, **{field: size // 2 for field, size in sizes.items()})


def _narrow(
    module: str, pieces: list[tensors.Piece], shape: tuple[int, ...], reference: Config, student: Config
) -> list[tensors.Piece]:
    """The part of a litgpt tensor of the reference that the narrow model keeps, for its own tensor's shape."""
    ranges = [(0, shape[0])]
    if module == "attn.qkv":
        starts = (0, qkv_rows(reference)[0], sum(qkv_rows(reference)[:2]))
        ranges = [(start, start + rows) for start, rows in zip(starts, qkv_rows(student), strict=True)]
    kept = tensors.select_rows(pieces, ranges)
    return kept if len(shape) == 1 else [replace(piece, columns=shape[1]) for piece in kept]
