"""The model that a run is planned for, by a name or a folder; weights are never needed."""

import re
from dataclasses import dataclass, replace
from pathlib import Path

from inheritune_lit import (
    Config,
    SliceArgs,
    UserError,
    count_parameters,
    is_litgpt_folder,
    reference_from_table,
    resolve_reference,
    student_config,
    tensor_shapes,
)
from inheritune_lit.references import REFERENCES, find_reference


@dataclass(frozen=True)
class ModelSpec:
    """The shape of a model to train.

    Attributes:
        title: its name for people.
        config: its configuration.
        tied: whether its head is the embedding.
    """

    title: str
    config: Config
    tied: bool

    @property
    def parameters(self) -> int:
        """Number of parameters, a tied head counted once."""
        return count_parameters(tensor_shapes(self.config, self.tied))

    @property
    def non_embedding_parameters(self) -> int:
        """Number of parameters without token embedding, learned positions and head."""
        return count_parameters(tensor_shapes(self.config, self.tied), embeddings=False)

    def first_layers(self, n: int) -> "ModelSpec":
        """The same model with its first n layers."""
        lists = {
            field: value[:n]
            for field in ("sliding_window_indices", "rope_indices", "attn_scale_layers")
            if (value := getattr(self.config, field, None)) is not None
        }
        return replace(self, config=replace(self.config, n_layer=n, **lists))


def model_of_reference(ref: str, n: int | None) -> ModelSpec:
    """A reference, or its first n layers.

    Raises:
        UserError: there is no such reference, or it has fewer layers.
    """
    known = find_reference(ref)
    opened = reference_from_table(known) if known else None
    if opened is None:
        with resolve_reference(ref) as located:
            opened = located.reference
    depth = opened.config.n_layer
    if n is None:
        return ModelSpec(f"{ref}, all {depth} layers", opened.config, opened.tied)
    config, _ = student_config(opened, SliceArgs(ref, n=n))
    return ModelSpec(f"{ref}, first {n} of {depth} layers", config, opened.tied)


def model_of_checkpoint(checkpoint_dir: Path) -> ModelSpec:
    """A checkpoint folder; where it is not there yet, what `inheritune slice` would write at this path.

    Raises:
        UserError: neither.
    """
    if is_litgpt_folder(checkpoint_dir):
        with resolve_reference(str(checkpoint_dir)) as located:
            reference = located.reference
            return ModelSpec(reference.config.name, reference.config, reference.tied)
    match = re.fullmatch(r"(.+)-(\d+)l(?:-[a-z]+)?", checkpoint_dir.name)
    if match:
        for known in REFERENCES:
            if known.repository == f"{checkpoint_dir.parent.name}/{match[1]}":
                return model_of_reference(known.name, int(match[2]))
    raise UserError(
        f"no checkpoint at {checkpoint_dir}, and its name does not tell which known reference it is a slice of; "
        "make it with `inheritune slice`, or give --ref and --n"
    )
