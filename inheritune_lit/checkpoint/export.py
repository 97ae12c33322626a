"""``inheritune export``: a litgpt checkpoint as a Hugging Face folder with a model card."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from inheritune_lit.checkpoint.architectures.base import Architecture, hf_tensors, qkv_rows, split_name
from inheritune_lit.checkpoint.architectures.table import architecture_of_hf, architecture_of_lit
from inheritune_lit.checkpoint.args import ExportArgs
from inheritune_lit.checkpoint.config import Config, GPT2Config, carried, load_config, load_hf_config, save_hf_config
from inheritune_lit.checkpoint.folder import MODEL_CONFIG, copy_files
from inheritune_lit.checkpoint.formats import write_safetensors
from inheritune_lit.checkpoint.tensors import EMBEDDING, HEAD, Piece, TensorSpec, mismatch, read_piece, tensor_shapes
from inheritune_lit.checkpoint.weights import SAFETENSORS, SAFETENSORS_INDEX, Weights, open_weights
from inheritune_lit.errors import UserError, printable
from inheritune_lit.io.folders import check_vacant, explain_full_disk, new_folder
from inheritune_lit.io.manifest import MANIFEST, read_manifest, write_manifest
from inheritune_lit.io.progress import Progress
from inheritune_lit.io.records import to_record
from inheritune_lit.references import REFERENCES

logger = logging.getLogger(__name__)

_Tensors = dict[str, tuple[TensorSpec, list[Piece]]]


def model_card(config: Config, origin: Lineage, parameters: int, licence: str | None) -> str:
    """Markdown with the front matter that the hub reads."""
    source, layers, tokens = origin
    front = ["---", "library_name: transformers", "pipeline_tag: text-generation"]
    front += [f"license: {licence}"] if licence else []
    front += [f"base_model: {printable(source.repository)}"] if source and source.org != "local" else []
    depth = f", {source.n_layer} layers" if source and source.n_layer else ""
    facts = [
        f"* Reference: {printable(source.repository) if source else 'not recorded'}{depth}",
        f"* Inherited layers: {', '.join(map(str, layers)) if layers else 'none'}",
        f"* Tokens trained after inheriting: {f'{tokens:,}' if tokens else 'none recorded'}",
        f"* Licence: {licence or 'that of the reference, which is not known here'}",
    ]
    if config.attention_logit_softcapping is not None:
        facts += ['* transformers soft-caps attention logits only with `attn_implementation="eager"`.']
    title = printable(f"# {config.hf_config.get('name') or config.name}")
    size = f"{config.n_layer} layers, width {config.n_embd} and {parameters:,} parameters"
    what = f"A decoder with {size}, made with the Inheritune recipe (arXiv 2404.08634)."
    return "\n".join([*front, "---", "", title, "", what, "", *facts, ""])


@dataclass(frozen=True)
class Origin:
    """The reference of a slice, as its manifest records it."""

    org: str | None = None
    name: str | None = None
    n_layer: int | None = None

    @property
    def repository(self) -> str:
        return f"{self.org}/{self.name}"


@dataclass(frozen=True)
class Step:
    """What the manifest of a checkpoint says about its making, and about that of what it was made from."""

    kind: str = ""
    tokens: int = 0
    reference: Origin | None = None
    layers: list[int] | None = None
    parent: Step | None = None

    def chain(self) -> Iterator[Step]:
        """This and what it was made from, the newest first."""
        step: Step | None = self
        while step:
            yield step
            step = step.parent


def step_of(checkpoint_dir: Path) -> Step:
    """What the manifest of a checkpoint says, empty where it has none; one of another form is a ``UserError``."""
    about = checkpoint_dir / MANIFEST, "the record of a checkpoint", "make the checkpoint again"
    return to_record(read_manifest(checkpoint_dir) or {}, Step, *about, others=True)


def references_of(step: Step) -> Iterator[tuple[Origin, list[int] | None]]:
    """Models that a checkpoint was sliced from, the nearest first, and their layer behind each of the checkpoint's,
    None where nothing is inherited."""
    layers: list[int] | None = None
    grown = random = False  # whether the layers are those of the reference that the slice before growing was of
    for each in step.chain():
        own, is_slice = each.layers, each.kind == "slice"
        if layers is None:
            layers, grown = own, not is_slice
        elif own is not None and not grown:
            layers = [own[layer] for layer in layers if layer in range(len(own))]
        if is_slice:
            grown, random = False, random or own is None
            yield each.reference or Origin(), None if random else layers


Lineage = tuple[Origin | None, list[int] | None, int]
"""A first reference, its layer behind each of the model's (None where unknown or random), and tokens trained since."""


def lineage(newest: Step) -> Lineage:
    """What a checkpoint leads back to."""
    found: list[tuple[Origin | None, list[int] | None]] = [(None, None), *references_of(newest)]
    tokens = 0
    for step in newest.chain():
        tokens += step.tokens
        if step.kind == "slice" and step.layers is None:  # random: what was trained before is gone
            break
    return *found[-1], tokens


@dataclass(frozen=True)
class ExportResult:
    """An exported model; as text nothing, as the command prints nothing."""

    folder: Path
    parameters: int
    licence: str | None  # as the model card states it; None where it is not known

    def __str__(self) -> str:
        return ""


def export(args: ExportArgs) -> ExportResult:
    """Write a folder that transformers loads; bad or misfitting weights or a full ``out_dir`` are a ``UserError``."""
    checkpoint_dir, out_dir = args.checkpoint_dir, args.out_dir
    config = load_config(checkpoint_dir)
    check_vacant(out_dir)
    weights, hf = open_weights(checkpoint_dir), load_hf_config(checkpoint_dir)
    architecture = architecture_of_hf(hf) if hf is not None else architecture_of_lit(config)
    tied = (EMBEDDING, HEAD) in weights.tied
    found = {name: spec.shape for name, spec in weights.specs.items()}
    if complaint := mismatch(tensor_shapes(config, tied=False), found):
        raise UserError(f"{weights.files[0]} does not fit {MODEL_CONFIG}: {complaint}; make the checkpoint again")
    tensors = plan_export(architecture, config, weights, tied)
    dtype = str(weights.specs[EMBEDDING].dtype).removeprefix("torch.")
    hf = carried(hf or {}) | architecture.to_hf(config)
    hf |= {"tie_word_embeddings": tied, "dtype": dtype, "torch_dtype": dtype}
    if isinstance(config, GPT2Config):
        # The scale is in the weights: transformers ignores the flag under its default attention.
        hf["scale_attn_by_inverse_layer_idx"] = False
    origin = read_manifest(checkpoint_dir) or {}
    descent = lineage(step_of(checkpoint_dir))
    repository = descent[0].repository if descent[0] else None
    licence = args.licence or next((each.licence for each in REFERENCES if each.repository == repository), None)
    parameters = sum(spec.numel for spec, _ in tensors.values())
    with explain_full_disk(out_dir), new_folder(out_dir) as staging:
        _write_shards(tensors, config, weights, staging, args.max_shard_bytes)
        save_hf_config(hf, staging)
        copy_files(checkpoint_dir, staging)
        (staging / "README.md").write_text(model_card(config, descent, parameters, licence), encoding="utf-8")
        write_manifest(staging, "export", {"checkpoint": checkpoint_dir.name, "origin": origin})
    logger.info("wrote %s", out_dir)
    return ExportResult(out_dir, parameters, licence)


def plan_export(architecture: Architecture, config: Config, weights: Weights, tied: bool) -> _Tensors:
    """Hugging Face tensor -> what it is, and the litgpt pieces, whose order it has, that make it (none: zeros)."""
    shapes = {name: spec.shape for name, spec in weights.specs.items() if not (tied and name == HEAD)}
    tensors: _Tensors = {}
    for name, pieces in hf_tensors(architecture, config, shapes).items():
        first = weights.specs[pieces[0].name]
        columns = first.shape[:1] if pieces[0].transpose else first.shape[1:]
        spec = TensorSpec((sum(piece.rows for piece in pieces), *columns), first.dtype)
        tensors[name] = spec, pieces
    # transformers' GPT-2 always has biases; the paper's own models have none.
    for name, (spec, _) in list(tensors.items()) if isinstance(config, GPT2Config) else []:
        bias = name.removesuffix("weight") + "bias"
        if name.endswith(".weight") and bias not in tensors and (".h." in name or "ln_f" in name):
            tensors[bias] = TensorSpec(spec.shape[-1:], spec.dtype), []
    return tensors


def _write_shards(tensors: _Tensors, config: Config, weights: Weights, folder: Path, max_bytes: int) -> None:
    from huggingface_hub import split_state_dict_into_shards_factory

    def chunks_of(name: str) -> Iterator[torch.Tensor]:
        spec, pieces = tensors[name]
        if not pieces:
            yield torch.zeros(spec.shape, dtype=spec.dtype)
        for piece in pieces:
            layer, module, _ = split_name(piece.name)
            divisor = 1
            if layer is not None and module == "attn.qkv" and isinstance(config, GPT2Config):
                divisor = config.attention_divisor(layer)
            for chunk in read_piece(weights.tensor(piece.name), piece):
                if divisor > 1:  # GPT-2's attention scale, in the columns of q
                    whole = chunk.float()
                    whole[..., : qkv_rows(config)[0]] /= divisor
                    chunk = whole.to(chunk.dtype)
                yield chunk
                progress.update(chunk.nbytes)

    pattern, sizes = SAFETENSORS.replace(".", "{suffix}."), {name: spec.nbytes for name, (spec, _) in tensors.items()}
    split = split_state_dict_into_shards_factory(
        sizes, get_storage_size=lambda size: size, filename_pattern=pattern, max_shard_size=max_bytes
    )
    with Progress("export", sum(sizes.values()), "B") as progress:
        for file, names in split.filename_to_tensors.items():
            write_safetensors(folder / file, {name: tensors[name][0] for name in names}, chunks_of)
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / SAFETENSORS_INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
