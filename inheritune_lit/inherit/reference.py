"""A reference: its configuration, the names of its tensors and, once opened, its weights, in whatever format."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from inheritune_lit.checkpoint.architectures.base import Architecture, full_name, hf_pieces, litgpt_name, split_name
from inheritune_lit.checkpoint.architectures.table import architecture_of_hf, architecture_of_lit
from inheritune_lit.checkpoint.config import Config, configs, load_hf_config, load_lit_config, require
from inheritune_lit.checkpoint.folder import (
    HF_CONFIG,
    MODEL_CONFIG,
    is_litgpt_folder,
    refuse_outside_links,
    suggest_final,
)
from inheritune_lit.checkpoint.tensors import EMBEDDING, HEAD, Piece, count_parameters, tensor_shapes
from inheritune_lit.checkpoint.weights import Weights
from inheritune_lit.errors import UserError, first_line
from inheritune_lit.references import Reference

_HF_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class ReferenceModel:
    """A pretrained model, described by its configuration; its weights are mapped, not loaded.

    Attributes:
        folder: where its files are.
        org, name: for the names of what is made from it.
        config: litgpt's configuration of the whole reference.
        hf: its ``config.json``, or what it would say.
        architecture: the key table.
        hf_keys: the weights carry Hugging Face names (else litgpt's).
        tied: the head is the token embedding.
        weights: its tensors, or some of them, under their full names; None until it is opened.
    """

    folder: Path
    org: str
    name: str
    config: Config
    hf: dict[str, Any]
    architecture: Architecture
    hf_keys: bool
    tied: bool
    weights: Weights | None = None

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every litgpt tensor of the reference with its shape; a tied head is left out."""
        return tensor_shapes(self.config, self.tied)

    def pieces(self, name: str) -> list[Piece] | None:
        """Stored tensors that a litgpt tensor of the reference is made of; None for a bias it does not have."""
        rows = self.shapes[name][0]
        if not self.hf_keys:
            return [Piece(name, 0, rows)]
        _, module, kind = split_name(name)
        switch = self.architecture.bias_switches.get(module)
        if kind == "bias" and switch is not None and not self.hf.get(*switch):
            return None
        return hf_pieces(self.architecture, self.config, name, rows)

    def stored_names(self, names: Iterable[str]) -> set[str]:
        """Names of the stored tensors behind litgpt tensors, in every layout that the files may have."""
        names, layouts = list(names), [self]
        if self.architecture.stacked:
            layouts.append(replace(self, architecture=self.architecture.with_stacked_experts()))
        return {piece.name for layout in layouts for name in names for piece in layout.pieces(name) or ()}

    def stored_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every stored tensor, as the configuration says."""
        last: dict[str, tuple[Piece, tuple[int, ...]]] = {}
        for name, shape in self.shapes.items():
            for piece in self.pieces(name) or ():
                if piece.name not in last or last[piece.name][0].stop < piece.stop:
                    last[piece.name] = piece, shape[1:]
        return {name: _stored_shape(piece, columns) for name, (piece, columns) in last.items()}

    def remapped(self) -> "ReferenceModel":
        """The same with its weights mapped anew: pages that were read leave memory with the old mapping."""
        return replace(self, weights=self.weights.remapped()) if self.weights else self

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type that ``config.json`` states, fp32 where it does not."""
        return _HF_DTYPES.get(str(self.hf.get("dtype", self.hf.get("torch_dtype"))), torch.float32)


def open_reference(folder: Path, org: str, name: str | None = None) -> ReferenceModel:
    """Read a reference's configuration.

    Args:
        folder: a Hugging Face or litgpt folder; its weights need not be there.
        org: organisation that made it, "local" where unknown.
        name: its name; the one it carries, else the folder's, when None.

    Raises:
        UserError: the folder is not a checkpoint, or its configuration is damaged or not supported.
    """
    if not folder.is_dir():
        raise UserError(f"no folder at {folder}; give a checkpoint folder, a hub repository or a known name")
    refuse_outside_links(folder)
    hf = load_hf_config(folder)
    if is_litgpt_folder(folder):
        return _open_litgpt(folder, org, name, hf)
    if hf is None:
        raise UserError(
            f"{folder} holds no checkpoint: neither {HF_CONFIG} nor {MODEL_CONFIG} is there; "
            + (suggest_final(folder) or "give the folder of one")
        )
    architecture = architecture_of_hf(hf)
    name = name or folder.resolve().name
    vocabulary = require(hf, "vocab_size")
    fields = architecture.to_lit(hf)
    try:
        config = architecture.config_class(
            name=litgpt_name(architecture, name),
            hf_config={"org": org, "name": name},
            vocab_size=vocabulary,
            padded_vocab_size=vocabulary,
            **fields,
        )
    except (AssertionError, ValueError, TypeError) as error:
        raise UserError(
            f"{folder / HF_CONFIG} describes no possible model ({first_line(error)}); get it again"
        ) from error
    tied = bool(hf.get("tie_word_embeddings", architecture.tied_by_default))
    return ReferenceModel(folder, org, name, config, hf, architecture, True, tied)


def _open_litgpt(folder: Path, org: str, name: str | None, hf: dict[str, Any] | None) -> ReferenceModel:
    config = load_lit_config(folder)
    if hf is not None:
        architecture = architecture_of_hf(hf)
        if (depth := architecture.to_lit(hf)["n_layer"]) != config.n_layer:
            raise UserError(
                f"{folder}: {HF_CONFIG} says {depth} layers, {MODEL_CONFIG} {config.n_layer}; get the checkpoint again"
            )
    else:
        architecture = architecture_of_lit(config)
        hf = {}
    name = name or config.name or folder.resolve().name
    org = config.hf_config.get("org", org) if org == "local" else org
    tied = bool(hf.get("tie_word_embeddings", architecture.tied_by_default))
    return ReferenceModel(folder, org, name, config, hf, architecture, False, tied)


def attach_weights(reference: ReferenceModel, weights: Weights) -> ReferenceModel:
    """The reference with its weights, which are compared with what the configuration promises.

    Whether experts are stored in one tensor, and whether the head of a litgpt folder is tied, is as the weights have
    it, whatever ``config.json`` says.

    Raises:
        UserError: a tensor that the model does not have, a wrong shape, or a tied head that differs.
    """
    if reference.hf_keys:
        weights = weights.renamed(full_name(reference.architecture, weights.specs))
        reference = replace(reference, architecture=reference.architecture.as_stored(weights.specs), weights=weights)
    else:
        # litgpt's own tools store a tied head twice, and untie it in training: the weights decide.
        tied = (EMBEDDING, HEAD) in weights.tied or (
            reference.tied
            and {EMBEDDING, HEAD} <= weights.specs.keys()
            and torch.equal(weights.tensor(EMBEDDING), weights.tensor(HEAD))
        )
        reference = replace(reference, tied=tied, weights=weights)
    embedding = next(iter(reference.stored_names([EMBEDDING])))
    expected = reference.stored_shapes()
    for name, spec in weights.specs.items():
        if name not in expected:
            if name.endswith(reference.architecture.ignored):
                continue
            if reference.tied and name in (HEAD, f"{reference.architecture.outer['lm_head']}.weight"):
                _check_same(weights, embedding, name)
                continue
            raise UserError(
                f"{weights.file_of[name]} holds {name}, which a model of its configuration does not have;"
                f" get the reference again"
            )
        if spec.shape != expected[name]:
            raise UserError(
                f"{weights.file_of[name]}: {name} has shape {list(spec.shape)}, its configuration says"
                f" {list(expected[name])}; get the reference again"
            )
        if not spec.dtype.is_floating_point:
            raise UserError(
                f"{weights.file_of[name]}: {name} has dtype {spec.dtype}; quantised weights are not supported,"
                f" give the floating-point checkpoint"
            )
    return reference


def _stored_shape(last: Piece, columns: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of a stored tensor whose last rows are a piece."""
    if last.stack:
        return last.stack, last.stop // last.stack, *columns
    return (last.stop, *columns)[::-1] if last.transpose else (last.stop, *columns)


def _check_same(weights: Weights, embedding: str, head: str) -> None:
    if embedding in weights.specs and not torch.equal(weights.tensor(embedding), weights.tensor(head)):
        raise UserError(
            f"{weights.file_of[head]}: {HF_CONFIG} says the head is tied, but {head} differs from {embedding};"
            f" correct tie_word_embeddings"
        )


def reference_from_table(known: Reference) -> ReferenceModel | None:
    """A named reference from litgpt's table of models, without files and network; None where the table lacks it.

    The table pads vocabularies and does not say which heads are tied: the known number of parameters decides.
    """
    org, name = known.repository.split("/")
    for entry in configs:
        if (entry["hf_config"]["org"], entry["hf_config"]["name"]) != (org, name):
            continue
        padded = Config(**entry)
        for vocabulary in (padded.vocab_size, padded.padded_vocab_size):
            config = replace(padded, padded_vocab_size=vocabulary)
            for tied in (False, True):
                if count_parameters(tensor_shapes(config, tied)) == known.parameters:
                    architecture = architecture_of_lit(config)
                    return ReferenceModel(Path(), org, name, config, {}, architecture, False, tied)
    return None
