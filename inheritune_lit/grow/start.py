"""A checkpoint to start from in place of a slice: does it belong to the reference?"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from inheritune_lit.checkpoint.lit_config import GPT2Config, load_config
from inheritune_lit.checkpoint.litgpt_config import Config
from inheritune_lit.checkpoint.manifest import read_manifest
from inheritune_lit.errors import UserError
from inheritune_lit.grow.checkpoint import slice_options
from inheritune_lit.inherit.plan import student_config
from inheritune_lit.inherit.reference import ReferenceModel
from inheritune_lit.model.load import is_tied, load_state

_LABELS = ("name", "hf_config")
_MOST_TELLING = ("n_embd", "padded_vocab_size", "n_head", "intermediate_size")


def layers_of(checkpoint_dir: Path) -> tuple[int, ...]:
    """The reference's layer behind each of a checkpoint's, as its manifest or its parent's says; the first ones where
    none says so.

    Raises:
        UserError: the folder is no checkpoint.
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
    """How a GPT-2 start counts its layers, see ``SliceOptions``."""
    config = load_config(checkpoint_dir) if checkpoint_dir else None
    return "keep" if isinstance(config, GPT2Config) and config.attn_scale_layers else "position"


def check_start(
    checkpoint_dir: Path, layers: tuple[int, ...], reference: ReferenceModel, tied: bool, attn_scale: str
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
