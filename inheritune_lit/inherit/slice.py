"""A plan carried out: the student's weights written chunk by chunk."""

import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from inheritune_lit.checkpoint.config import GPT2Config, save_lit_config
from inheritune_lit.checkpoint.folder import HF_CONFIG, TOKENIZER_FILES, WEIGHTS, copy_files
from inheritune_lit.checkpoint.tensors import CHUNK_BYTES, read_piece
from inheritune_lit.checkpoint.torch_files import write_torch_checkpoint
from inheritune_lit.checkpoint.weights import Weights
from inheritune_lit.inherit.args import PARTS, SliceOptions
from inheritune_lit.inherit.plan import Initialise, Plan, build_plan, student_config
from inheritune_lit.inherit.reference import ReferenceModel
from inheritune_lit.inherit.resolve import Located, locate
from inheritune_lit.io.folders import check_vacant, explain_full_disk, new_folder
from inheritune_lit.io.manifest import read_manifest, sha256_file, write_manifest
from inheritune_lit.io.progress import Progress


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
        if isinstance(tensor.source, Initialise):
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
    initialise: Initialise, shape: tuple[int, ...], dtype: torch.dtype, seed: int, name: str
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
        if initialise.kind == "normal":
            yield (torch.randn(count, generator=generator) * initialise.std).to(dtype)
        else:
            yield torch.full((count,), float(initialise.kind == "ones"), dtype=dtype)
        left -= count


def _is_finite(chunk: torch.Tensor) -> bool:
    # One sum is many times faster than a test of every element; it can overflow, so a doubt is settled exactly.
    return bool(chunk.sum().isfinite()) or bool(chunk.isfinite().all())


def slice_reference(
    ref: str,
    *,
    n: int | None = None,
    layers: str | None = None,
    out_dir: Path | None = None,
    init: str = "inherit",
    seed: int = 1337,
    dry_run: bool = False,
    parts: tuple[str, ...] = PARTS,
    embeddings: bool = True,
    final_norm: bool = True,
    head: bool = True,
    positions: bool = True,
    attn_scale: str = "position",
    hash_sources: bool = True,
    tokenizer_dir: Path | None = None,
) -> Path:
    """Build a small model out of a pretrained one's layers.

    Args:
        ref: a known name or hub repository (``@`` and a revision may follow), a folder (Hugging Face or litgpt) or a
            GGUF file.
        out_dir: the new checkpoint; ``checkpoints/<org>/<name>-<n>l`` when None.
        dry_run: print the plan and stop.
        tokenizer_dir: GPT-2's tokenizer, for a shape that has no weights.

    The other options are those of ``SliceOptions``.

    Returns:
        The checkpoint folder (where it would be, for a dry run).

    Raises:
        UserError: bad input; nothing is left behind.
    """
    options = SliceOptions(
        n, layers, init, parts, embeddings, final_norm, head, attn_scale, hash_sources, positions, seed
    )
    with locate(ref, tokenizer_dir) as located:
        return _slice(located, options, out_dir, dry_run)


def _slice(located: Located, options: SliceOptions, out_dir: Path | None, dry_run: bool) -> Path:
    reference = located.reference
    student = student_config(reference, options)[0]
    out_dir = out_dir or Path("checkpoints") / reference.org / student.hf_config["name"]
    if not dry_run:
        check_vacant(out_dir)
    needed = options.init != "random" and not dry_run
    weights = located.weights(options) if needed else located.weights_at_hand(options)
    plan = build_plan(reference, weights, options)
    _print_summary(reference, plan, options, out_dir)
    if dry_run:
        for name, source in plan.sources().items():
            print(f"  {name} <- {source}")
        return out_dir
    with explain_full_disk(out_dir), new_folder(out_dir) as staging:
        _write(located, weights, plan, options, staging)
    print(f"wrote {out_dir}", file=sys.stderr)
    return out_dir


def _write(located: Located, weights: Weights | None, plan: Plan, options: SliceOptions, staging: Path) -> None:
    reference, repository = located.reference, located.repository
    # The hub states its files' hashes. Local ones are hashed while they are copied: both read the same pages.
    local = _feeding_files(plan, weights) if weights and not repository else []
    with ThreadPoolExecutor(max_workers=max(1, min(len(local), os.cpu_count() or 1))) as pool:
        hashes = [pool.submit(_sha256, file) if options.hash_sources else None for file in local]
        with Progress(f"slice {plan.name}", plan.nbytes, "B") as progress:
            not_finite = execute(plan, weights, staging / WEIGHTS, progress)
        files = _files_record(local, [future.result() if future else None for future in hashes])
    if weights and repository:
        files = repository.record(weights)
    if not_finite:
        print(
            f"inheritune: warning: {len(not_finite)} tensors hold NaN or infinity, such as {not_finite[0]};"
            f" the reference is damaged or overflowed",
            file=sys.stderr,
        )
    _write_configs(plan, staging)
    copied = copy_files(reference.folder, staging, (*TOKENIZER_FILES, "generation_config.json"))
    record = {
        "reference": {
            "org": reference.org,
            "name": reference.name,
            "source": located.source,
            "revision": repository.revision if repository else None,
            "format": weights.format if weights else None,
            "n_layer": reference.config.n_layer,
            "files": files,
        },
        "init": options.init,
        "parts": list(options.parts),
        "embeddings": options.embeddings,
        "final_norm": options.final_norm,
        "head": options.head,
        "positions": options.positions,
        "attn_scale": options.attn_scale if isinstance(plan.config, GPT2Config) else None,
        "seed": options.seed,
        "n_layer": plan.config.n_layer,
        "layers": plan.layers,
        "tied": bool(plan.aliases),
        "dtype": str(plan.dtype).removeprefix("torch."),
        "parameters": {"total": plan.parameters, "non_embedding": plan.non_embedding_parameters},
        "copied": copied,
        "tensors": plan.sources(),
        "parent": _parent(located),
    }
    write_manifest(staging, "slice", record)


def _parent(located: Located) -> dict[str, Any] | None:
    """The manifest of a reference that this package has made, without its list of tensors."""
    manifest = read_manifest(located.reference.folder)
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


def _files_record(files: list[Path], hashes: list[str | None]) -> list[dict[str, Any]]:
    return [
        {"path": path.name, "bytes": path.stat().st_size, "sha256": sha256}
        for path, sha256 in zip(files, hashes, strict=True)
    ]


def _write_configs(plan: Plan, staging: Path) -> None:
    save_lit_config(plan.config, staging)
    (staging / HF_CONFIG).write_text(json.dumps(plan.hf, indent=2) + "\n", encoding="utf-8")


def _print_summary(reference: ReferenceModel, plan: Plan, options: SliceOptions, out_dir: Path) -> None:
    chosen = "none" if plan.layers is None else ",".join(map(str, plan.layers))
    print(f"reference {reference.name}: {reference.config.n_layer} layers, width {reference.config.n_embd}")
    print(f"student   {plan.name}: {plan.config.n_layer} layers, init {options.init}, from layers {chosen}")
    print(
        f"          {plan.parameters:,} parameters, {plan.non_embedding_parameters:,} without embeddings,"
        f" {plan.nbytes:,} bytes of {str(plan.dtype).removeprefix('torch.')}"
    )
    print(f"          to {out_dir}")
