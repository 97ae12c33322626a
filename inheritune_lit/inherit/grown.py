"""Checkpoints that grow: whether one belongs to a reference, and a trained one with more layers."""

from dataclasses import asdict, replace
from pathlib import Path

from inheritune_lit.checkpoint.architectures.base import split_name
from inheritune_lit.checkpoint.config import GPT2Config, load_config
from inheritune_lit.checkpoint.export import step_of
from inheritune_lit.checkpoint.tensors import EMBEDDING, HEAD, Piece, TensorSpec
from inheritune_lit.checkpoint.weights import open_weights
from inheritune_lit.errors import UserError
from inheritune_lit.inherit.args import AttnScale, SliceArgs
from inheritune_lit.inherit.plan import FreshValues, TensorPlan, build_plan, student_config
from inheritune_lit.inherit.reference import ReferenceModel
from inheritune_lit.inherit.slice import parent_of, write_student
from inheritune_lit.io.folders import explain_full_disk, new_folder
from inheritune_lit.io.manifest import write_manifest

_LABELS = {"name", "hf_config"}
_MOST_TELLING = ("n_embd", "padded_vocab_size", "n_head", "intermediate_size")


def layers_of(checkpoint_dir: Path) -> tuple[int, ...]:
    """The reference's layer behind each of a checkpoint's, as its manifest or its parent's says, or the first."""
    depth = load_config(checkpoint_dir).n_layer
    recorded = next((step.layers for step in step_of(checkpoint_dir).chain() if step.layers is not None), [])
    return tuple(recorded) if len(recorded) == depth else tuple(range(depth))


def attn_scale_of(checkpoint_dir: Path | None) -> AttnScale:
    """How a GPT-2 start counts its layers, see ``SliceArgs``."""
    config = load_config(checkpoint_dir) if checkpoint_dir else None
    return "keep" if isinstance(config, GPT2Config) and config.attn_scale_layers else "position"


def slice_options(layers: tuple[int, ...], attn_scale: AttnScale) -> SliceArgs:
    """A slice of these layers of a reference, which has the shape and the configuration of the grown model."""
    return SliceArgs("", layers=",".join(map(str, layers)), attn_scale=attn_scale)


def check_start(start_dir: Path, layers: tuple[int, ...], reference: ReferenceModel, attn_scale: AttnScale) -> None:
    """Check that ``layers`` of the reference fit behind a checkpoint's: one of another shape is a ``UserError``."""

    def refusal(own: str, other: object) -> UserError:
        remedy = "start from a checkpoint that was sliced from this reference"
        return UserError(f"{start_dir} {own}, the reference {reference.name} {other}; {remedy}")

    depth = reference.config.n_layer
    if len(layers) > depth or max(layers) >= depth:
        raise refusal(f"has {len(layers)} layers, up to the reference's layer {max(layers)}", f"has {depth}")
    ours = asdict(load_config(start_dir))
    theirs = asdict(student_config(reference, slice_options(layers, attn_scale))[0])
    for field in (*_MOST_TELLING, *sorted(theirs.keys() - _LABELS)):
        if ours.get(field) != theirs[field]:
            raise refusal(f"has {field} {ours.get(field)}", theirs[field])
    if ((EMBEDDING, HEAD) in open_weights(start_dir).tied) != reference.tied:
        this, that = ("does not tie", "does") if reference.tied else ("ties", "does not")
        raise refusal(f"{this} its head to the embeddings", that)


def write_grown(
    out_dir: Path,
    reference: ReferenceModel,
    trained_dir: Path,
    layers: tuple[int, ...],
    added: int,
    attn_scale: AttnScale,
) -> None:
    """Write a trained model with more layers, which an opened reference gives.

    Embeddings, final norm, head and old layers are those of the trained model, byte for byte; new layers stand behind
    them and take the trained model's dtype. ``layers`` are the reference's behind each of the new model's, of which the
    last ``added`` are new. A full disk, or something damaged, is a ``UserError``.
    """
    plan, trained = build_plan(reference, slice_options(layers, attn_scale)), open_weights(trained_dir)
    old = len(layers) - added
    for name, tensor in plan.tensors.items():
        layer, _, _ = split_name(name)
        if layer is None or layer < old:
            spec = trained.specs[name]
            plan.tensors[name] = TensorPlan(spec, (Piece(name, 0, spec.shape[0]),), f"trained {name}", trained)
        else:
            fresh = isinstance(tensor.source, FreshValues)  # a bias that the reference does not store
            words = tensor.words if fresh else f"reference {tensor.words}"
            spec = TensorSpec(tensor.spec.shape, trained.specs[EMBEDDING].dtype)
            plan.tensors[name] = replace(tensor, spec=spec, words=words)
    with explain_full_disk(out_dir), new_folder(out_dir) as staging:
        write_student(plan, staging, trained_dir, show_progress=False)
        record = {
            "n_layer": len(layers),
            "layers": list(layers),
            "grown_layers": list(range(old, len(layers))),
            "dtype": plan.dtype,
            "tensors": plan.sources(),
            "parent": parent_of(trained_dir),
        }
        write_manifest(staging, "checkpoint", record)
