"""``inheritune slice``: a small model from the layers of a pretrained one, planned first, then written."""

import hashlib
import logging
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from inheritune_lit.checkpoint.config import GPT2Config, save_hf_config, save_lit_config
from inheritune_lit.checkpoint.folder import WEIGHTS, copy_files
from inheritune_lit.checkpoint.tensors import CHUNK_BYTES, read_piece
from inheritune_lit.checkpoint.weights import Weights
from inheritune_lit.checkpoint.write import write_torch_checkpoint
from inheritune_lit.inherit.args import SliceArgs
from inheritune_lit.inherit.plan import FreshValues, Plan, build_plan, inherited_names, student_config
from inheritune_lit.inherit.reference import ReferenceModel
from inheritune_lit.inherit.resolve import ResolvedReference, resolve
from inheritune_lit.io.folders import check_vacant, explain_full_disk, new_folder
from inheritune_lit.io.manifest import read_manifest, sha256_file, write_manifest
from inheritune_lit.io.progress import Progress

logger = logging.getLogger(__name__)


def execute(plan: Plan, weights: Weights | None, path: Path, progress: Progress) -> list[str]:
    """Write ``lit_model.pth``. Inherited values are the reference's bytes.

    Args:
        plan: what to write.
        weights: the reference's weights; None where the plan inherits nothing.
        path: the file.
        progress: counts bytes.

    Returns:
        Names of student tensors that hold NaN or infinity.

    Raises:
        OSError: the file cannot be written.
    """
    not_finite: set[str] = set()

    def chunks_of(name: str) -> Iterator[torch.Tensor]:
        tensor = plan.tensors[name]
        if isinstance(tensor.source, FreshValues):
            chunks = initial_values(tensor.source, tensor.spec.shape, tensor.spec.dtype, plan.seed, name)
        else:
            assert weights, "a plan that inherits"
            chunks = (chunk for piece in tensor.source for chunk in read_piece(weights.tensor(piece.name), piece))
        for chunk in chunks:
            if not _is_finite(chunk):
                not_finite.add(name)
            yield chunk
            progress.update(chunk.nbytes)

    specs = {name: tensor.spec for name, tensor in plan.tensors.items()}
    write_torch_checkpoint(path, specs, plan.aliases, chunks_of)
    return [name for name in specs if name in not_finite]


def initial_values(
    values: FreshValues, shape: tuple[int, ...], dtype: torch.dtype, seed: int, name: str
) -> Iterator[torch.Tensor]:
    """Fresh values of one tensor as flat chunks, drawn in fp32.

    They depend on the seed and the tensor's name alone, so neither the order of tensors nor what else is inherited
    changes them.
    """
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    left, step = torch.Size(shape).numel(), CHUNK_BYTES // 4
    while left:
        count = min(left, step)
        if values.kind == "normal":
            yield (torch.randn(count, generator=generator) * values.std).to(dtype)
        else:
            yield torch.full((count,), float(values.kind == "ones"), dtype=dtype)
        left -= count


def _is_finite(chunk: torch.Tensor) -> bool:
    # One sum is many times faster than a test of every element; it can overflow, so a doubt is settled exactly.
    return bool(chunk.sum().isfinite()) or bool(chunk.isfinite().all())


@dataclass(frozen=True)
class SliceResult:
    """A new checkpoint, or the plan of one; as text, what the command prints.

    Attributes:
        folder: the checkpoint (where it would be, for a dry run).
        reference: the reference's name.
        reference_layers, reference_width: its depth and width.
        name: the student's name.
        n_layer: its depth.
        init: how its weights begin.
        layers: the reference's layer behind each of its layers; None where no layer is inherited.
        parameters, non_embedding_parameters: its size, a tied head counted once.
        nbytes: bytes of its weights.
        dtype: type of its token embedding, such as "bfloat16".
        sources: its tensors -> what feeds them, in words.
        dry_run: nothing was written.
    """

    folder: Path
    reference: str
    reference_layers: int
    reference_width: int
    name: str
    n_layer: int
    init: str
    layers: list[int] | None
    parameters: int
    non_embedding_parameters: int
    nbytes: int
    dtype: str
    sources: dict[str, str]
    dry_run: bool

    def __str__(self) -> str:
        layers = "none" if self.layers is None else ",".join(map(str, self.layers))
        lines = [
            f"reference {self.reference}: {self.reference_layers} layers, width {self.reference_width}",
            f"student   {self.name}: {self.n_layer} layers, init {self.init}, from layers {layers}",
            f"          {self.parameters:,} parameters, {self.non_embedding_parameters:,} without embeddings,"
            f" {self.nbytes:,} bytes of {self.dtype}",
            f"          to {self.folder}",
        ]
        if self.dry_run:
            lines += [f"  {name} <- {source}" for name, source in self.sources.items()]
        return "\n".join(lines)


def slice_model(args: SliceArgs) -> SliceResult:
    """Build a small model from the layers of a pretrained one.

    Raises:
        UserError: bad input; nothing is left behind.
    """
    with resolve(args.ref, args.tokenizer_dir) as resolved:
        return _slice(resolved, args)


def _slice(resolved: ResolvedReference, args: SliceArgs) -> SliceResult:
    student = student_config(resolved.reference, args)
    out_dir = args.out_dir or Path("checkpoints") / resolved.reference.org / student.config.hf_config["name"]
    if not args.dry_run:
        check_vacant(out_dir)
    if args.init != "random" and not (args.dry_run and resolved.repository):
        resolved = resolved.open(inherited_names(resolved.reference, args, student))
    reference = resolved.reference
    plan = build_plan(reference, args, student)
    if not args.dry_run:
        with explain_full_disk(out_dir), new_folder(out_dir) as staging:
            _write(resolved, plan, args, staging)
        logger.info("wrote %s", out_dir)
    return SliceResult(
        folder=out_dir,
        reference=reference.name,
        reference_layers=reference.config.n_layer,
        reference_width=reference.config.n_embd,
        name=plan.name,
        n_layer=plan.config.n_layer,
        init=args.init,
        layers=plan.layers,
        parameters=plan.parameters,
        non_embedding_parameters=plan.non_embedding_parameters,
        nbytes=plan.nbytes,
        dtype=plan.dtype_name,
        sources=plan.sources(),
        dry_run=args.dry_run,
    )


def _write(resolved: ResolvedReference, plan: Plan, args: SliceArgs, staging: Path) -> None:
    reference, repository, weights = resolved.reference, resolved.repository, resolved.reference.weights
    # The hub states its files' hashes. Local ones are hashed while they are copied: both read the same pages.
    local = _feeding_files(plan, weights) if weights and not repository else []
    with ThreadPoolExecutor(max_workers=max(1, min(len(local), os.cpu_count() or 1))) as pool:
        hashes = [pool.submit(_sha256, file) if args.hash_sources else None for file in local]
        with Progress(f"slice {plan.name}", plan.nbytes, "B") as progress:
            not_finite = execute(plan, weights, staging / WEIGHTS, progress)
        files = [
            {"path": path.name, "bytes": path.stat().st_size, "sha256": sha256.result() if sha256 else None}
            for path, sha256 in zip(local, hashes, strict=True)
        ]
    if weights and repository:
        files = repository.record(weights)
    if not_finite:
        logger.warning(
            "warning: %s tensors hold NaN or infinity, such as %s; the reference is damaged or overflowed",
            len(not_finite),
            not_finite[0],
        )
    save_lit_config(plan.config, staging)
    save_hf_config(plan.hf, staging)
    copied = copy_files(reference.folder, staging)
    record = {
        "reference": {
            "org": reference.org,
            "name": reference.name,
            "source": resolved.source,
            "revision": repository.revision if repository else None,
            "format": weights.format if weights else None,
            "n_layer": reference.config.n_layer,
            "files": files,
        },
        "init": args.init,
        "parts": list(args.inherited_parts),
        "embeddings": args.embeddings,
        "final_norm": args.final_norm,
        "head": args.head,
        "positions": args.positions,
        "attn_scale": args.attn_scale if isinstance(plan.config, GPT2Config) else None,
        "seed": args.seed,
        "n_layer": plan.config.n_layer,
        "layers": plan.layers,
        "tied": bool(plan.aliases),
        "dtype": plan.dtype_name,
        "parameters": {"total": plan.parameters, "non_embedding": plan.non_embedding_parameters},
        "copied": copied,
        "tensors": plan.sources(),
        "parent": _parent(reference),
    }
    write_manifest(staging, "slice", record)


def _parent(reference: ReferenceModel) -> dict[str, Any] | None:
    """The manifest of a reference that this package has made, without its list of tensors."""
    manifest = read_manifest(reference.folder)
    return {key: value for key, value in manifest.items() if key != "tensors"} if manifest else None


def _feeding_files(plan: Plan, weights: Weights) -> list[Path]:
    """The files that hold something of the student."""
    if weights.format == "gguf":
        return weights.files
    return sorted({weights.file_of[name] for name in plan.stored_shapes})


def _sha256(file: Path) -> str:
    # The hub's cache names its blobs by their SHA-256.
    blob = file.resolve()
    stated = blob.parent.name == "blobs" and re.fullmatch(r"[0-9a-f]{64}", blob.name)
    return blob.name if stated else sha256_file(file)
