"""The model that a run is planned for, from a name, a folder or a recipe; weights are never needed."""

import re
from dataclasses import dataclass, replace
from pathlib import Path

from inheritune_lit.checkpoint.architectures.table import architecture_of_lit
from inheritune_lit.checkpoint.config import Config, configs
from inheritune_lit.checkpoint.folder import is_litgpt_folder
from inheritune_lit.checkpoint.tensors import count_parameters, tensor_shapes
from inheritune_lit.errors import UserError
from inheritune_lit.inherit.args import SliceArgs
from inheritune_lit.inherit.plan import student_config
from inheritune_lit.inherit.reference import ReferenceModel
from inheritune_lit.inherit.resolve import resolve
from inheritune_lit.references import REFERENCES, Reference, find_reference


@dataclass(frozen=True)
class Subject:
    """A model to train.

    Attributes:
        title: how it is called.
        config: its shape.
        tied: its head is the embedding.
        depth: layers of the reference, None where the model is not cut out of one.
    """

    title: str
    config: Config
    tied: bool
    depth: int | None = None

    @property
    def parameters(self) -> int:
        """How many, a tied head counted once."""
        return count_parameters(tensor_shapes(self.config, self.tied))

    @property
    def non_embedding_parameters(self) -> int:
        """Without token embedding, learned positions and head."""
        return count_parameters(tensor_shapes(self.config, self.tied), embeddings=False)

    def at(self, n: int) -> "Subject":
        """The same with its first n layers."""
        lists = {
            field: value[:n]
            for field in ("sliding_window_indices", "rope_indices", "attn_scale_layers")
            if (value := getattr(self.config, field, None)) is not None
        }
        return replace(self, config=replace(self.config, n_layer=n, **lists))


def subject_of_reference(ref: str, n: int | None) -> Subject:
    """A reference, or its first n layers.

    Raises:
        UserError: there is no such reference, or it has fewer layers.
    """
    known = find_reference(ref)
    opened = _from_table(known) if known else None
    if opened is None:
        with resolve(ref) as resolved:
            opened = resolved.reference
    depth = opened.config.n_layer
    if n is None:
        return Subject(f"{ref}, all {depth} layers", opened.config, opened.tied)
    config, _ = student_config(opened, SliceArgs(ref, n=n))
    return Subject(f"{ref}, first {n} of {depth} layers", config, opened.tied, depth)


def subject_of_checkpoint(checkpoint_dir: Path) -> Subject:
    """A checkpoint folder; where it is not there yet, what `inheritune slice` would write at this path.

    Raises:
        UserError: neither.
    """
    if is_litgpt_folder(checkpoint_dir):
        with resolve(str(checkpoint_dir)) as resolved:
            reference = resolved.reference
            return Subject(reference.config.name, reference.config, reference.tied)
    match = re.fullmatch(r"(.+)-(\d+)l(?:-[a-z]+)?", checkpoint_dir.name)
    if match:
        for known in REFERENCES:
            if known.repository == f"{checkpoint_dir.parent.name}/{match[1]}":
                return subject_of_reference(known.name, int(match[2]))
    raise UserError(
        f"no checkpoint at {checkpoint_dir}, and its name is not that of a known reference's slice; make it with "
        "`inheritune slice`, or give --ref and --n"
    )


def _from_table(known: Reference) -> ReferenceModel | None:
    """A named reference out of litgpt's table of models, so that a plan needs no network; None where it is not there.

    The table pads vocabularies and doesn't say which heads are tied: the known number of parameters decides.
    """
    org, name = known.repository.split("/")
    for entry in configs:
        if (entry["hf_config"]["org"], entry["hf_config"]["name"]) != (org, name):
            continue
        padded = Config(**entry)
        for vocabulary in (padded.vocab_size, padded.padded_vocab_size):
            config = replace(padded, padded_vocab_size=vocabulary)
            for tied in (False, True):
                shapes = tensor_shapes(config, tied)
                if count_parameters(shapes) == known.parameters:
                    architecture = architecture_of_lit(config)
                    return ReferenceModel(Path(), org, name, config, {}, architecture, False, tied)
    return None
