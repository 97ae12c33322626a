"""Checkpoints that grow: whether one belongs to a reference, and a trained one with more layers."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from inheritune_lit.checkpoint.architectures.base import split_name
from inheritune_lit.checkpoint.config import Config, GPT2Config, load_config, save_hf_config, save_lit_config
from inheritune_lit.checkpoint.folder import WEIGHTS, copy_files
from inheritune_lit.checkpoint.tensors import EMBEDDING, Piece, TensorSpec, describe, read_piece
from inheritune_lit.checkpoint.weights import Weights, open_weights
from inheritune_lit.checkpoint.write import write_torch_checkpoint
from inheritune_lit.errors import UserError
from inheritune_lit.inherit.args import SliceArgs
from inheritune_lit.inherit.plan import FreshValues, Plan, build_plan, student_config
from inheritune_lit.inherit.reference import ReferenceModel
from inheritune_lit.io.folders import explain_full_disk, new_folder
from inheritune_lit.io.manifest import read_manifest, write_manifest
from inheritune_lit.model.load import is_tied, load_state

_LABELS = ("name", "hf_config")
_MOST_TELLING = ("n_embd", "padded_vocab_size", "n_head", "intermediate_size")


def layers_of(checkpoint_dir: Path) -> tuple[int, ...]:
    """The reference's layer behind each of a checkpoint's, as its manifest or its parent's says; the first ones where
    none says so.

    Raises:
        UserError: the folder is not a checkpoint.
    """
    depth = load_config(checkpoint_dir).n_layer
    manifest: dict[str, Any] | None = read_manifest(checkpoint_dir)
    while manifest:
        if manifest.get("layers") is not None:
            layers = tuple(manifest["layers"])
            return layers if len(layers) == depth else tuple(range(depth))
        manifest = manifest.get("parent")
    return tuple(range(depth))


def attn_scale_of(checkpoint_dir: Path | None) -> str:
    """How a GPT-2 start counts its layers, see ``SliceArgs``."""
    config = load_config(checkpoint_dir) if checkpoint_dir else None
    return "keep" if isinstance(config, GPT2Config) and config.attn_scale_layers else "position"


def check_start(
    checkpoint_dir: Path,
    layers: tuple[int, ...],
    reference: ReferenceModel,
    tied: bool,
    attn_scale: str,
) -> None:
    """Check that the reference's layers fit behind a checkpoint's.

    Args:
        layers: the reference's layer behind each of the checkpoint's.
        tied: the reference's head is its embedding.

    Raises:
        UserError: the checkpoint has another width, vocabulary, ... than the reference, or more layers.
    """
    config, depth = load_config(checkpoint_dir), reference.config.n_layer
    if len(layers) > depth or max(layers) >= depth:
        raise UserError(
            f"{checkpoint_dir} has {len(layers)} layers, up to the reference's layer {max(layers)}; {reference.name} "
            f"has {depth}: give a checkpoint that was sliced from it"
        )
    ours, theirs = _shape(config), _shape(student_config(reference, slice_options(layers, attn_scale))[0])
    for field in (*_MOST_TELLING, *sorted(theirs)):
        if ours.get(field) != theirs[field]:
            raise UserError(
                f"{checkpoint_dir} has {field} {ours.get(field)}, the reference {reference.name} {theirs[field]}; "
                "start from a checkpoint that was sliced from this reference"
            )
    if is_tied(load_state(checkpoint_dir)) != tied:
        words = ("ties", "does not") if not tied else ("does not tie", "does")
        raise UserError(
            f"{checkpoint_dir} {words[0]} its head to the embeddings, the reference {reference.name} {words[1]}; start "
            "from a checkpoint that was sliced from this reference"
        )


def _shape(config: Config) -> dict[str, Any]:
    return {name: value for name, value in asdict(config).items() if name not in _LABELS}


@dataclass(frozen=True)
class _Grown:
    """Where each tensor of the grown model comes from: a tensor of the trained one, or the plan of a slice."""

    plan: Plan
    own: dict[str, str]
    trained: Weights
    reference: Weights
    dtype: torch.dtype

    def chunks_of(self, name: str) -> Iterator[torch.Tensor]:
        if name in self.own:
            stored = self.trained.tensor(self.own[name])
            yield from read_piece(stored, Piece(self.own[name], 0, len(stored)))
            return
        source = self.plan.tensors[name].source
        if isinstance(source, FreshValues):  # a bias that the reference does not store
            yield torch.zeros(self.plan.tensors[name].spec.shape, dtype=self.dtype)
            return
        for piece in source:
            for chunk in read_piece(self.reference.tensor(piece.name), piece):
                yield chunk.to(self.dtype)

    def sources(self) -> dict[str, str]:
        """Student tensor -> what feeds it, in words."""
        words = self.plan.sources()
        for name, own in self.own.items():
            words[name] = f"trained {own}"
        for name, tensor in self.plan.tensors.items():
            if name not in self.own and not isinstance(tensor.source, FreshValues):
                words[name] = f"reference {describe(list(tensor.source), self.plan.stored_shapes)}"
        return words


def slice_options(layers: tuple[int, ...], attn_scale: str, ref: str = "") -> SliceArgs:
    """A slice of these layers of the reference, which has the shape and the configuration of the grown model."""
    return SliceArgs(ref, layers=",".join(map(str, layers)), attn_scale="keep" if attn_scale == "keep" else "position")


def write_grown(
    out_dir: Path,
    reference: ReferenceModel,
    trained_dir: Path,
    layers: tuple[int, ...],
    added: int,
    own_layers: bool,
    attn_scale: str,
) -> None:
    """Write a trained model with more layers.

    Embeddings, final norm, head and old layers are those of the trained model, byte for byte; new layers stand behind
    them and take the trained model's dtype.

    Args:
        out_dir: the new folder.
        reference: the opened reference.
        trained_dir: the trained model, which gets more layers.
        layers: the reference's layer behind each layer of the new model.
        added: how many of them, the last ones, are new.
        own_layers: new layers are copies of the model's own last ones.
        attn_scale: see ``SliceArgs``.

    Raises:
        UserError: the disk is full, or something is damaged.
    """
    args = slice_options(layers, attn_scale)
    plan = build_plan(reference, args, student_config(reference, args))
    trained = open_weights(trained_dir)
    old = len(layers) - added
    own = {name: source for name in plan.tensors if (source := _own_source(name, old, added, own_layers))}
    dtype = trained.specs[EMBEDDING].dtype
    assert reference.weights, "an opened reference"
    content = _Grown(plan, own, trained, reference.weights, dtype)
    specs = {name: TensorSpec(tensor.spec.shape, dtype) for name, tensor in plan.tensors.items()}
    specs |= {name: trained.specs[source] for name, source in own.items()}
    dtype_name = str(dtype).removeprefix("torch.")
    with explain_full_disk(out_dir), new_folder(out_dir) as staging:
        write_torch_checkpoint(staging / WEIGHTS, specs, plan.aliases, content.chunks_of)
        save_lit_config(plan.config, staging)
        hf = {**plan.hf, "dtype": dtype_name, "torch_dtype": dtype_name}
        save_hf_config(hf, staging)
        copy_files(trained_dir, staging)
        parent = read_manifest(trained_dir) or {}
        record = {
            "n_layer": len(layers),
            "layers": list(layers),
            "grown_layers": list(range(old, len(layers))),
            "dtype": dtype_name,
            "tensors": content.sources(),
            "parent": {key: value for key, value in parent.items() if key != "tensors"},
        }
        write_manifest(staging, "checkpoint", record)


def _own_source(name: str, old: int, added: int, own_layers: bool) -> str | None:
    """The trained model's tensor behind one of the grown model, None for what comes from the reference."""
    layer, module, kind = split_name(name)
    if layer is None or layer < old:
        return name
    return f"transformer.h.{layer - added}.{module}.{kind}" if own_layers else None
