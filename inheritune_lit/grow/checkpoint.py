"""A trained model with more layers: its own tensors and, behind them, the reference's."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from inheritune_lit.checkpoint.architectures.base import split_name
from inheritune_lit.checkpoint.folder import HF_CONFIG, TOKENIZER_FILES, WEIGHTS, copy_files
from inheritune_lit.checkpoint.lit_config import save_lit_config
from inheritune_lit.checkpoint.manifest import read_manifest, write_manifest
from inheritune_lit.checkpoint.output import explain_full_disk, new_folder
from inheritune_lit.checkpoint.pieces import Piece, describe, read_piece
from inheritune_lit.checkpoint.shapes import EMBEDDING
from inheritune_lit.checkpoint.torch_writer import write_torch_checkpoint
from inheritune_lit.checkpoint.weights import TensorSpec, Weights, open_weights
from inheritune_lit.grow.layers import Round
from inheritune_lit.inherit.options import SliceOptions
from inheritune_lit.inherit.plan import Initialise, Plan, build_plan
from inheritune_lit.inherit.reference import ReferenceModel


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
        if isinstance(source, Initialise):  # a bias that the reference does not store
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
            if name not in self.own and not isinstance(tensor.source, Initialise):
                words[name] = f"reference {describe(list(tensor.source), self.plan.stored_shapes)}"
        return words


def slice_options(layers: tuple[int, ...], attn_scale: str) -> SliceOptions:
    """A slice of these layers of the reference, which has the shape and the configuration of the grown model."""
    return SliceOptions(layers=",".join(map(str, layers)), attn_scale=attn_scale)


def write_grown(
    out_dir: Path,
    reference: ReferenceModel,
    weights: Weights,
    trained_dir: Path,
    grown: Round,
    own_layers: bool,
    attn_scale: str,
) -> None:
    """Write the checkpoint that a round starts from.

    Embeddings, final norm, head and old layers are those of the trained model, byte for byte; new layers stand behind
    them and take the trained model's dtype.

    Args:
        out_dir: the new folder.
        reference, weights: the opened reference.
        trained_dir: what the round before ended with.
        grown: the round.
        own_layers: new layers are copies of the model's own last ones.
        attn_scale: see ``SliceOptions``.

    Raises:
        UserError: the disk is full, or something is damaged.
    """
    plan = build_plan(reference, weights, slice_options(grown.layers, attn_scale))
    trained = open_weights(trained_dir)
    old = len(grown.layers) - grown.added
    own = {name: source for name in plan.tensors if (source := _own_source(name, old, grown.added, own_layers))}
    dtype = trained.specs[EMBEDDING].dtype
    content = _Grown(plan, own, trained, weights, dtype)
    specs = {name: TensorSpec(tensor.spec.shape, dtype) for name, tensor in plan.tensors.items()}
    specs |= {name: trained.specs[source] for name, source in own.items()}
    dtype_name = str(dtype).removeprefix("torch.")
    with explain_full_disk(out_dir), new_folder(out_dir) as staging:
        write_torch_checkpoint(staging / WEIGHTS, specs, plan.aliases, content.chunks_of)
        save_lit_config(plan.config, staging)
        hf = {**plan.hf, "dtype": dtype_name, "torch_dtype": dtype_name}
        (staging / HF_CONFIG).write_text(json.dumps(hf, indent=2) + "\n", encoding="utf-8")
        copy_files(trained_dir, staging, (*TOKENIZER_FILES, "generation_config.json"))
        parent = read_manifest(trained_dir) or {}
        record = {
            "n_layer": len(grown.layers),
            "layers": list(grown.layers),
            "grown_layers": list(range(old, len(grown.layers))),
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
