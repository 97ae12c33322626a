"""``inheritune slice``: a small model from the layers of a pretrained one, planned first, then written."""

import hashlib
import logging
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from inheritune_lit.checkpoint.config import GPT2Config, save_hf_config, save_lit_config
from inheritune_lit.checkpoint.folder import WEIGHTS, copy_files
from inheritune_lit.checkpoint.formats import write_torch_checkpoint
from inheritune_lit.checkpoint.hub import sha256_of
from inheritune_lit.checkpoint.tensors import CHUNK_BYTES, TensorSpec, read_piece
from inheritune_lit.inherit.args import SliceArgs, layers_text
from inheritune_lit.inherit.plan import FreshValues, Plan, build_plan, inherited_names, student_config
from inheritune_lit.inherit.reference import ReferenceModel, ResolvedReference, resolve
from inheritune_lit.inherit.searched import layers_for, load_search, search_record
from inheritune_lit.io.folders import check_vacant, explain_full_disk, new_folder
from inheritune_lit.io.manifest import read_manifest, write_manifest
from inheritune_lit.io.progress import Progress
from inheritune_lit.tokenizer import check_tokenizer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SliceResult:
    """A new checkpoint in ``folder``, or for a dry run the plan of one; as text, what the command prints."""

    folder: Path
    reference: ReferenceModel
    plan: Plan
    init: str
    dry_run: bool

    def __str__(self) -> str:
        plan, depth, width = self.plan, self.reference.config.n_layer, self.reference.config.n_embd
        total, inner = plan.parameters(), plan.parameters(embeddings=False)
        repair = f", repair {plan.repair}" if plan.repair else ""
        layers = "none" if plan.layers is None else ",".join(map(str, plan.layers))
        lines = [
            f"reference {self.reference.name}: {depth} layers, width {width}",
            f"student   {plan.name}: {plan.config.n_layer} layers, init {self.init}, from layers {layers}{repair}",
            f"          {total:,} parameters, {inner:,} without embeddings, {plan.nbytes:,} bytes of {plan.dtype}",
            f"          to {self.folder}",
        ]
        if self.dry_run:
            lines += [f"  {name} <- {source}" for name, source in plan.sources().items()]
        return "\n".join(lines)


def slice_model(args: SliceArgs) -> SliceResult:
    """Build a small model from the layers of a pretrained one; bad input is a ``UserError``, and nothing is left."""
    with resolve(args.ref, args.tokenizer_dir) as resolved:
        search, record_search, repairs = None, None, args.repair is not None
        if args.search is not None and args.n is not None:
            search = load_search(args.search)
            layers = layers_for(search, args.search, args.n, resolved.reference)
            if repairs:
                from inheritune_lit.inherit.repair import check_repairable, repaired  # which needs litgpt

                check_repairable(resolved.reference)
            record_search = partial(search_record, search, args.search)
            args = replace(args, search=None, n=None, layers=layers_text(layers), repair=None)
        names = resolved.reference.org, student_config(resolved.reference, args)[0].hf_config["name"]
        # Names may come from a file that others wrote: each has to be that of one folder.
        folders = (re.sub(r"[^\w.+ -]", "_", str(name)[-200:]).strip(". ") or "model" for name in names)
        out_dir = args.out_dir or Path("checkpoints", *folders)
        if not args.dry_run:
            check_vacant(out_dir)
        if args.init != "random" and not (args.dry_run and resolved.repository):
            resolved = resolved.open(None if repairs else inherited_names(resolved.reference, args))
        plan = build_plan(resolved.reference, args)
        check_tokenizer(resolved.reference.folder, plan.config.padded_vocab_size)
        if not args.dry_run:
            if search and repairs:
                plan = repaired(plan, resolved.reference, torch.tensor(search.sequences)[:, :-1])
            with explain_full_disk(out_dir), new_folder(out_dir) as staging:
                _write(resolved, plan, args, staging, record_search)
            logger.info("wrote %s", out_dir)
        return SliceResult(out_dir, resolved.reference, plan, args.init, args.dry_run)


def _write(
    resolved: ResolvedReference,
    plan: Plan,
    args: SliceArgs,
    staging: Path,
    record_search: Callable[..., dict[str, Any]] | None,
) -> None:
    reference, repository, weights = resolved.reference, resolved.repository, resolved.reference.weights
    # The hub states its files' hashes. Local ones are hashed while they are copied: both read the same pages.
    local: list[Path] = []
    if weights and not repository:
        sources = (tensor.source for tensor in plan.tensors.values())
        needed = {weights.file_of[piece.name] for pieces in sources if isinstance(pieces, tuple) for piece in pieces}
        local = weights.files if weights.format == "gguf" else sorted(needed)
    with ThreadPoolExecutor(max_workers=max(1, min(len(local), os.cpu_count() or 1))) as pool:
        hashes = [pool.submit(sha256_of, file) if args.hash_sources else None for file in local]
        copied = write_student(plan, staging, reference.folder)
        files = [
            {"path": path.name, "bytes": path.stat().st_size, "sha256": sha256.result() if sha256 else None}
            for path, sha256 in zip(local, hashes, strict=True)
        ]
    if repository and weights:
        files = repository.record(weights)
    record = {
        "reference": {
            "org": reference.org,
            "name": reference.name,
            "source": resolved.source,
            "revision": resolved.revision,
            "format": weights.format if weights else None,
            "n_layer": reference.config.n_layer,
            "files": files,
        },
        **{name: getattr(args, name) for name in ("init", "embeddings", "final_norm", "head", "positions", "seed")},
        "parts": list(args.inherited_parts),
        "attn_scale": args.attn_scale if isinstance(plan.config, GPT2Config) else None,
        "n_layer": plan.config.n_layer,
        "layers": plan.layers,
        "search": record_search(reference.name, files) if record_search else None,
        "repair": plan.repair,
        "tied": bool(plan.aliases),
        "dtype": plan.dtype,
        "parameters": {"total": plan.parameters(), "non_embedding": plan.parameters(embeddings=False)},
        "copied": copied,
        "tensors": plan.sources(),
        "parent": parent_of(reference.folder),
    }
    write_manifest(staging, "slice", record)


def parent_of(folder: Path) -> dict[str, Any] | None:
    """The manifest of a checkpoint that this package has made, without its list of tensors; None where it has none."""
    manifest = read_manifest(folder)
    return {key: value for key, value in manifest.items() if key != "tensors"} if manifest else None


def write_student(plan: Plan, folder: Path, tokenizer_dir: Path, show_progress: bool = True) -> list[str]:
    """Write the checkpoint of a plan without its manifest; warns of tensors that hold NaN or infinity.

    Inherited values are copied byte for byte if the dtype stays; returns the names of files from ``tokenizer_dir``.
    """
    not_finite: set[str] = set()

    def chunks_of(name: str) -> Iterator[torch.Tensor]:
        tensor = plan.tensors[name]
        if isinstance(tensor.source, FreshValues):
            chunks = _initial_values(tensor.source, tensor.spec, plan.seed, name)
        else:
            assert tensor.weights, "opened models"
            stored = ((tensor.weights.tensor(piece.name), piece) for piece in tensor.source)
            chunks = (chunk for whole, piece in stored for chunk in read_piece(whole, piece))
            if tensor.map_CC is not None:
                chunks = iter([tensor.map_CC.mT @ torch.cat([*chunks]).view(tensor.spec.shape).float()])
        for chunk in (chunk.to(tensor.spec.dtype) for chunk in chunks):
            # One sum is many times faster than a test of every element; it can overflow: a doubt is settled exactly.
            if not chunk.sum().isfinite() and not chunk.isfinite().all():
                not_finite.add(name)
            yield chunk
            progress.update(chunk.nbytes)

    with Progress(f"slice {plan.name}", plan.nbytes, "B", hidden=not show_progress) as progress:
        specs = {name: tensor.spec for name, tensor in plan.tensors.items()}
        write_torch_checkpoint(folder / WEIGHTS, specs, plan.aliases, chunks_of)
    if damaged := [name for name in specs if name in not_finite]:
        words = "warning: %s tensors hold NaN or infinity, such as %s; the reference is damaged or overflowed"
        logger.warning(words, len(damaged), damaged[0])
    save_lit_config(plan.config, folder)
    save_hf_config({**plan.hf, "dtype": plan.dtype, "torch_dtype": plan.dtype}, folder)
    return copy_files(tokenizer_dir, folder)


def _initial_values(values: FreshValues, spec: TensorSpec, seed: int, name: str) -> Iterator[torch.Tensor]:
    """Fresh values of one tensor as flat chunks, drawn in fp32 from the seed and the tensor's name alone."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    step = CHUNK_BYTES // 4
    for start in range(0, spec.numel, step):
        count = min(step, spec.numel - start)
        if values.kind == "normal":
            yield (torch.randn(count, generator=generator) * values.std).to(spec.dtype)
        else:
            yield torch.full((count,), float(values.kind == "ones"), dtype=spec.dtype)
