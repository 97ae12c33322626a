"""The plan of a slice: which tensor of the reference, or which fresh values, fill a student's. No weights move here."""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch

from inheritune_lit.checkpoint.architectures.base import split_name
from inheritune_lit.checkpoint.architectures.sources import qkv_rows
from inheritune_lit.checkpoint.config import Config, GPT2Config, trim_lists
from inheritune_lit.checkpoint.tensors import (
    EMBEDDING,
    HEAD,
    Piece,
    TensorSpec,
    count_parameters,
    describe,
    select_columns,
    select_rows,
    tensor_shapes,
)
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
    """One student tensor: its shape and dtype, and what fills it (pieces are stacked top to bottom)."""

    spec: TensorSpec
    source: tuple[Piece, ...] | FreshValues


@dataclass
class Plan:
    """A student model and where its tensors come from.

    Attributes:
        config: litgpt's configuration of the student.
        hf: its ``config.json``.
        layers: the reference's layer behind each student layer; None where no layer is inherited.
        tensors: every student tensor, in the order of the file.
        aliases: names that share another tensor's storage: the tied head.
        seed: seed of the initialisers.
        stored_shapes: shapes of the stored tensors that feed the student.
    """

    config: Config
    hf: dict[str, Any]
    layers: list[int] | None
    tensors: dict[str, TensorPlan]
    aliases: dict[str, str]
    seed: int
    stored_shapes: dict[str, tuple[int, ...]]

    @property
    def name(self) -> str:
        """The student's name; litgpt's configuration may have another, by which litgpt chooses its norms."""
        return self.config.hf_config["name"]

    @property
    def parameters(self) -> int:
        """Number of parameters, a tied head counted once."""
        return sum(tensor.spec.numel for tensor in self.tensors.values())

    @property
    def non_embedding_parameters(self) -> int:
        """Parameters without token embedding, learned positions and head."""
        shapes = {name: tensor.spec.shape for name, tensor in self.tensors.items()}
        return count_parameters(shapes, embeddings=False)

    @property
    def nbytes(self) -> int:
        """Bytes of the student's weights."""
        return sum(tensor.spec.nbytes for tensor in self.tensors.values())

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the token embedding."""
        return self.tensors[EMBEDDING].spec.dtype

    @property
    def dtype_name(self) -> str:
        """Its name, such as "bfloat16"."""
        return str(self.dtype).removeprefix("torch.")

    def sources(self) -> dict[str, str]:
        """Student tensor -> what feeds it, in words."""
        words = {
            name: str(tensor.source)
            if isinstance(tensor.source, FreshValues)
            else describe(list(tensor.source), self.stored_shapes)
            for name, tensor in self.tensors.items()
        }
        return words | {name: f"tied to {target}" for name, target in self.aliases.items()}


class Student(NamedTuple):
    """The student's configuration, and the reference's layer behind each of its layers."""

    config: Config
    layers: list[int]


def student_config(reference: ReferenceModel, args: SliceArgs) -> Student:
    """What a slice of a reference is, by its configuration alone.

    Raises:
        UserError: arguments that do not fit the reference.
    """
    config = reference.config
    layers = layer_map(args, config.n_layer)
    _check_tied(reference, args)
    if not args.positions and not isinstance(config, GPT2Config):
        raise UserError(f"--positions false: {reference.name} has no learned positions; leave it out")
    per_layer: dict[str, list[int] | None] = {
        field: [value[layer] for layer in layers]
        for field in ("sliding_window_indices", "rope_indices")
        if (value := getattr(config, field)) is not None
    }
    if isinstance(config, GPT2Config):
        scale = [config.attention_divisor(layer) - 1 for layer in layers]
        keep = config.scale_attn_by_inverse_layer_idx and args.attn_scale == "keep" and args.init != "random"
        per_layer["attn_scale_layers"] = scale if keep else None
    suffix = f"-{len(layers)}l" + ("-half-width" if args.init == "half-width" else "")
    config = replace(
        config,
        name=config.name + suffix,
        hf_config={**config.hf_config, "name": reference.name + suffix},
        n_layer=len(layers),
        **per_layer,
    )
    if args.init == "half-width":
        config = half_width_config(config)
        if config.n_embd != config.n_head * config.head_size and not reference.architecture.free_head_size:
            raise UserError(
                f"--init half-width: {reference.config.n_head} heads of size {config.head_size} cannot be halved,"
                f" and this architecture ties head size to width; choose another --init"
            )
    return Student(config, layers)


def _check_tied(reference: ReferenceModel, args: SliceArgs) -> None:
    if reference.tied and args.embeddings != args.head:
        raise UserError("the reference's head is tied to its embeddings; switch --embeddings and --head together")


def inherited_names(reference: ReferenceModel, args: SliceArgs, student: Student) -> set[str]:
    """litgpt names of the reference's tensors that the student takes something of; no weights are needed."""
    return {
        source
        for name in tensor_shapes(student.config, reference.tied)
        if (source := _source_name(name, student.layers, args)) is not None
    }


def build_plan(reference: ReferenceModel, args: SliceArgs, student: Student) -> Plan:
    """Plan a student.

    Args:
        reference: the reference; without weights, the plan is made from its configuration alone.
        args: what to build.
        student: the answer of ``student_config``.

    Raises:
        UserError: arguments that do not fit the reference, or a needed tensor is missing.
    """
    _check_tied(reference, args)  # again: the weights may say otherwise than the configuration
    config, layers = student
    shapes = tensor_shapes(config, reference.tied)
    default = _default_dtype(reference)
    tensors: dict[str, TensorPlan] = {}
    for name, shape in shapes.items():
        module = split_name(name)[1]
        source = _source_name(name, layers, args)
        pieces = reference.pieces(source) if source is not None else None
        if pieces is None:
            fresh = FreshValues("zeros") if source is not None else _initialiser(reference, config, name)
            tensors[name] = TensorPlan(TensorSpec(shape, default), fresh)
            continue
        if args.init == "half-width":
            pieces = _narrow(module, pieces, shape, reference.config, config)
        tensors[name] = TensorPlan(TensorSpec(shape, _dtype_of(pieces, reference.weights, default)), tuple(pieces))
    stored = {piece.name for plan in tensors.values() if isinstance(plan.source, tuple) for piece in plan.source}
    hf = {
        **trim_lists(reference.hf, layers, reference.config.n_layer),
        "model_type": reference.architecture.model_type,
        "architectures": [reference.architecture.class_name],
        **reference.architecture.to_hf(config),
        "vocab_size": config.padded_vocab_size,
        "tie_word_embeddings": reference.tied,
        "dtype": str(default).removeprefix("torch."),
        "torch_dtype": str(default).removeprefix("torch."),
    }
    return Plan(
        config=config,
        hf=hf,
        layers=layers if stored else None,
        tensors=tensors,
        aliases={HEAD: EMBEDDING} if reference.tied else {},
        seed=args.seed,
        stored_shapes={name: shape for name, shape in reference.stored_shapes().items() if name in stored},
    )


def _source_name(name: str, layers: list[int], args: SliceArgs) -> str | None:
    """The reference's litgpt tensor behind a student's, None where it is initialised afresh."""
    if args.init == "random":
        return None
    layer, module, kind = split_name(name)
    if layer is None:
        wanted = {
            "lm_head": args.head,
            "transformer.ln_f": args.final_norm,
            "transformer.wpe": args.positions,
        }.get(module, args.embeddings)
        return name if wanted else None
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
    std = float(reference.hf.get("initializer_range", 0.02))
    if module in reference.architecture.residual_modules:
        std /= (2 * config.n_layer) ** 0.5
    return FreshValues("normal", std)


def _dtype_of(pieces: list[Piece], weights: Weights | None, default: torch.dtype) -> torch.dtype:
    if weights is None:
        return default
    dtypes = set()
    for piece in pieces:
        if piece.name not in weights.specs:
            raise UserError(f"{weights.files[0].parent} lacks the tensor {piece.name}; get the reference again")
        dtypes.add(weights.specs[piece.name].dtype)
    if len(dtypes) > 1:
        raise UserError(f"{pieces[0].name} and {pieces[-1].name} have different dtypes; get the reference again")
    return dtypes.pop()


def _default_dtype(reference: ReferenceModel) -> torch.dtype:
    """Floating-point type of what is not inherited: the stored embedding's, else what ``config.json`` says."""
    for name in reference.stored_names([EMBEDDING]):
        if reference.weights is not None and name in reference.weights.specs:
            return reference.weights.specs[name].dtype
    return reference.dtype


def half_width_config(config: Config) -> Config:
    """The configuration at half the width; head size stays.

    Query groups are halved, rounding up, and keep their number of heads; with one group its heads are halved.

    Raises:
        UserError: embedding or MLP size is odd, or the model has experts.
    """
    if config.mlp_class_name == "LLaMAMoE":
        # Half of the experts, or all of them at half their width? The router's choice would be another either way.
        raise UserError("--init half-width is not defined for a mixture of experts; choose another --init")
    for field in ("n_embd", "intermediate_size"):
        if getattr(config, field) % 2:
            raise UserError(f"--init half-width: {field} of the reference is {getattr(config, field)}, which is odd")
    groups = -(-config.n_query_groups // 2)
    heads = groups * (config.n_head // config.n_query_groups) if config.n_query_groups > 1 else -(-config.n_head // 2)
    return replace(
        config,
        n_embd=config.n_embd // 2,
        intermediate_size=config.intermediate_size // 2,
        n_head=heads,
        n_query_groups=groups,
    )


def _narrow(
    module: str, pieces: list[Piece], shape: tuple[int, ...], reference: Config, student: Config
) -> list[Piece]:
    """The part of a litgpt tensor that the narrow model keeps.

    Args:
        module: its module, such as "attn.qkv".
        pieces: the reference's tensor.
        shape: the student's tensor.
        reference, student: the two configurations.
    """
    if module == "attn.qkv":
        starts = (0, qkv_rows(reference)[0], sum(qkv_rows(reference)[:2]))
        ranges = [(start, start + rows) for start, rows in zip(starts, qkv_rows(student), strict=True)]
    else:
        ranges = [(0, shape[0])]
    kept = select_rows(pieces, ranges)
    return kept if len(shape) == 1 else select_columns(kept, shape[1])
