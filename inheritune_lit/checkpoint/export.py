"""``inheritune export``: a litgpt checkpoint as a Hugging Face folder with a model card."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

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


def model_card(config: Config, origin: dict[str, Any], parameters: int, licence: str | None) -> str:
    """Markdown with the front matter that the hub reads; ``origin`` is the checkpoint's manifest, empty without one."""
    source, layers, tokens = lineage(origin)
    repository = printable(f"{source.get('org')}/{source.get('name')}")
    front = ["---", "library_name: transformers", "pipeline_tag: text-generation"]
    front += [f"license: {licence}"] if licence else []
    front += [f"base_model: {repository}"] if source and source.get("org") != "local" else []
    depth = f", {source['n_layer']} layers" if source.get("n_layer") else ""
    facts = [
        f"* Reference: {repository if source else 'not recorded'}{depth}",
        f"* Inherited layers: {', '.join(map(str, layers)) if layers else 'none'}",
        f"* Tokens trained after inheriting: {f'{tokens:,}' if tokens else 'none recorded'}",
        f"* Licence: {licence or 'that of the reference, which is not known here'}",
    ]
    if config.attention_logit_softcapping is not None:
        facts.append(
            '* transformers leaves out the soft-capping of attention logits unless `attn_implementation="eager"`.'
        )
    title = printable(f"# {config.hf_config.get('name') or config.name}")
    what = (
        f"A decoder with {config.n_layer} layers, width {config.n_embd} and {parameters:,} parameters,"
        " made with the Inheritune recipe (arXiv 2404.08634)."
    )
    return "\n".join([*front, "---", "", title, "", what, "", *facts, ""])


def known_licence(origin: dict[str, Any]) -> str | None:
    """The licence of the named reference that a checkpoint descends from, None where it is not one."""
    source = lineage(origin)[0]
    repository = f"{source.get('org')}/{source.get('name')}"
    return next((reference.licence for reference in REFERENCES if reference.repository == repository), None)


@dataclass(frozen=True)
class Origin:
    """The reference of a slice, as its manifest records it."""

    org: str | None = None
    name: str | None = None
    n_layer: int | None = None


@dataclass(frozen=True)
class Step:
    """What the manifest of a checkpoint says about its making, and about that of what it was made from."""

    kind: str = ""
    tokens: int = 0
    reference: Origin | None = None
    layers: list[int] | None = None
    parent: Step | None = None


def to_step(manifest: dict[str, Any], path: Path = Path(MANIFEST)) -> Step:
    """The manifest at a path as a step; one of another form is a ``UserError``."""
    return to_record(manifest, Step, path, "the record of a checkpoint", "make the checkpoint again", others=True)


def lineage(manifest: dict[str, Any]) -> tuple[dict[str, Any], list[int] | None, int]:
    """The record of the first reference that manifests lead back to, its layer behind each of the model's (None where
    unknown or random), and the tokens trained on since."""
    source: dict[str, Any] = {}
    layers: list[int] | None = None
    tokens, random = 0, False
    step: Step | None = to_step(manifest)
    while step:
        tokens += 0 if random else step.tokens
        if step.kind == "slice":
            source, own = asdict(step.reference or Origin()), step.layers
            random = random or own is None
            own = own or []
            kept = own if layers is None else [own[layer] for layer in layers if layer in range(len(own))]
            layers = None if random else kept
        step = step.parent
    return source, layers, tokens


@dataclass(frozen=True)
class HFTensor:
    """A tensor of the exported model: pieces of litgpt tensors, or zeros where there is nothing to copy."""

    spec: TensorSpec
    pieces: tuple[Piece, ...]
    divisors: tuple[int, int] | None = None
    """(columns, divisor) of GPT-2's attention scale: the leading columns are divided by it, in fp32."""


@dataclass(frozen=True)
class ExportResult:
    """An exported model: whether its head is the token embedding, the licence as the model card states it (None where
    it is not known), and the names of its safetensors files. As text nothing: the command prints nothing."""

    folder: Path
    parameters: int
    tied: bool
    licence: str | None
    files: list[str]

    def __str__(self) -> str:
        return ""


def export(args: ExportArgs) -> ExportResult:
    """Write a folder that ``AutoModelForCausalLM.from_pretrained`` loads.

    No checkpoint, weights that disagree with their configuration, or an occupied ``out_dir`` are a ``UserError``.
    """
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
    licence = args.licence or known_licence(origin)
    parameters = sum(tensor.spec.numel for tensor in tensors.values())
    with explain_full_disk(out_dir), new_folder(out_dir) as staging:
        files = _write_shards(tensors, weights, staging, args.max_shard_bytes)
        save_hf_config(hf, staging)
        copy_files(checkpoint_dir, staging)
        (staging / "README.md").write_text(model_card(config, origin, parameters, licence), encoding="utf-8")
        write_manifest(staging, "export", {"checkpoint": checkpoint_dir.name, "origin": origin})
    logger.info("wrote %s", out_dir)
    return ExportResult(out_dir, parameters, tied, licence, files)


def plan_export(architecture: Architecture, config: Config, weights: Weights, tied: bool) -> dict[str, HFTensor]:
    """Hugging Face tensor -> where it comes from, in the order of the litgpt file.

    A tensor that the architecture does not have is a ``UserError``.
    """
    shapes = {name: spec.shape for name, spec in weights.specs.items() if not (tied and name == HEAD)}
    tensors: dict[str, HFTensor] = {}
    for name, pieces in hf_tensors(architecture, config, shapes).items():
        first = weights.specs[pieces[0].name]
        columns = first.shape[:1] if pieces[0].transpose else first.shape[1:]
        spec = TensorSpec((sum(piece.rows for piece in pieces), *columns), first.dtype)
        tensors[name] = HFTensor(spec, tuple(pieces), _scale(config, pieces[0].name))
    if isinstance(config, GPT2Config):
        # transformers' GPT-2 always has biases; the paper's own models have none.
        for name, tensor in list(tensors.items()):
            bias = name.removesuffix("weight") + "bias"
            if name.endswith(".weight") and bias not in tensors and (".h." in name or "ln_f" in name):
                tensors[bias] = HFTensor(TensorSpec(tensor.spec.shape[-1:], tensor.spec.dtype), ())
    return tensors


def _scale(config: Config, name: str) -> tuple[int, int] | None:
    layer, module, _ = split_name(name)
    if layer is None or module != "attn.qkv" or not isinstance(config, GPT2Config):
        return None
    divisor = config.attention_divisor(layer)
    return (qkv_rows(config)[0], divisor) if divisor > 1 else None


def _chunks(tensor: HFTensor, weights: Weights, progress: Progress) -> Iterator[torch.Tensor]:
    if not tensor.pieces:
        yield torch.zeros(tensor.spec.shape, dtype=tensor.spec.dtype)
    for piece in tensor.pieces:
        for chunk in read_piece(weights.tensor(piece.name), piece):
            if tensor.divisors:
                columns, divisor = tensor.divisors
                scaled = chunk.float()
                scaled[..., :columns] /= divisor
                chunk = scaled.to(chunk.dtype)
            yield chunk
            progress.update(chunk.nbytes)


def _write_shards(tensors: dict[str, HFTensor], weights: Weights, folder: Path, max_bytes: int) -> list[str]:
    from huggingface_hub import split_state_dict_into_shards_factory

    pattern, sizes = SAFETENSORS.replace(".", "{suffix}."), {name: tensors[name].spec.nbytes for name in tensors}
    split = split_state_dict_into_shards_factory(
        sizes, get_storage_size=lambda size: size, filename_pattern=pattern, max_shard_size=max_bytes
    )
    with Progress("export", sum(sizes.values()), "B") as progress:
        for file, names in split.filename_to_tensors.items():
            specs = {name: tensors[name].spec for name in names}
            write_safetensors(folder / file, specs, lambda name: _chunks(tensors[name], weights, progress))
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / SAFETENSORS_INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return sorted(split.filename_to_tensors)
