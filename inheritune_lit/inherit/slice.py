"""``inheritune slice``: a litgpt checkpoint out of a reference."""

import errno
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from inheritune_lit.checkpoint.folder import HF_CONFIG, TOKENIZER_FILES, WEIGHTS, copy_files
from inheritune_lit.checkpoint.lit_config import save_lit_config
from inheritune_lit.checkpoint.manifest import sha256_file, write_manifest
from inheritune_lit.checkpoint.output import check_vacant, new_folder
from inheritune_lit.checkpoint.weights import Weights, open_weights
from inheritune_lit.errors import UserError
from inheritune_lit.inherit.execute import execute
from inheritune_lit.inherit.options import PARTS, SliceOptions
from inheritune_lit.inherit.plan import Plan, build_plan
from inheritune_lit.inherit.reference import ReferenceModel, check_weights, open_reference
from inheritune_lit.progress import Progress
from inheritune_lit.references import find_reference, unknown_reference


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
) -> Path:
    """Build a small model out of a pretrained one's layers.

    Args:
        ref: a known name, a hub repository or a folder (Hugging Face or litgpt).
        out_dir: the new checkpoint; ``checkpoints/<org>/<name>-<n>l`` when None.
        dry_run: print the plan and stop.

    The other options are those of ``SliceOptions``.

    Returns:
        The checkpoint folder (where it would be, for a dry run).

    Raises:
        UserError: bad input; nothing is left behind.
    """
    options = SliceOptions(n, layers, init, parts, embeddings, final_norm, head, seed)
    folder, org, name = _locate(ref)
    reference = open_reference(folder, org, name)
    weights = None
    if init != "random":
        weights = open_weights(folder)
        check_weights(reference, weights)
    plan = build_plan(reference, weights, options)
    out_dir = out_dir or Path("checkpoints") / reference.org / plan.config.hf_config["name"]
    _print_summary(reference, plan, options, out_dir)
    if dry_run:
        for student, source in plan.sources().items():
            print(f"  {student} <- {source}")
        return out_dir
    check_vacant(out_dir)
    try:
        with new_folder(out_dir) as staging:
            _write(reference, weights, plan, options, staging)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise UserError(
            f"no space for {plan.nbytes / 1e9:.2f} GB at {out_dir} ({error.strerror}); nothing is left"
        ) from error
    print(f"wrote {out_dir}", file=sys.stderr)
    return out_dir


def _locate(ref: str) -> tuple[Path, str, str | None]:
    """Folder, organisation and name of a reference."""
    folder = Path(ref).expanduser()
    if folder.is_dir():
        return folder, "local", None
    if ref.startswith((".", "/", "~")):
        raise UserError(f"no folder at {ref}; give a checkpoint folder, a hub repository or a known name")
    known = find_reference(ref)
    if known is None and ref.count("/") != 1:
        raise unknown_reference(ref)
    from inheritune_lit.checkpoint.download import download_reference

    repository = known.repository if known else ref
    return download_reference(repository, gated=bool(known and known.gated)), *repository.split("/")


def _write(
    reference: ReferenceModel, weights: Weights | None, plan: Plan, options: SliceOptions, staging: Path
) -> None:
    with ThreadPoolExecutor(max_workers=1) as pool:
        # The sources are hashed while they are copied: both read the same pages.
        hashes = [pool.submit(sha256_file, file) for file in (weights.files if weights else ())]
        with Progress(f"slice {plan.config.name}", plan.nbytes, "B") as progress:
            not_finite = execute(plan, weights, staging / WEIGHTS, progress)
        files = _files_record(weights, [future.result() for future in hashes])
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
            "source": str(reference.folder),
            "format": weights.format if weights else None,
            "n_layer": reference.config.n_layer,
            "files": files,
        },
        "init": options.init,
        "parts": list(options.parts),
        "embeddings": options.embeddings,
        "final_norm": options.final_norm,
        "head": options.head,
        "seed": options.seed,
        "n_layer": plan.config.n_layer,
        "layers": plan.layers,
        "tied": bool(plan.aliases),
        "dtype": str(plan.dtype).removeprefix("torch."),
        "parameters": {"total": plan.parameters, "non_embedding": plan.non_embedding_parameters},
        "copied": copied,
        "tensors": plan.sources(),
    }
    write_manifest(staging, "slice", record)


def _files_record(weights: Weights | None, hashes: list[str]) -> list[dict[str, Any]]:
    if weights is None:
        return []
    return [
        {"path": path.name, "bytes": path.stat().st_size, "sha256": sha256}
        for path, sha256 in zip(weights.files, hashes, strict=True)
    ]


def _write_configs(plan: Plan, staging: Path) -> None:
    save_lit_config(plan.config, staging)
    (staging / HF_CONFIG).write_text(json.dumps(plan.hf, indent=2) + "\n", encoding="utf-8")


def _print_summary(reference: ReferenceModel, plan: Plan, options: SliceOptions, out_dir: Path) -> None:
    chosen = "none" if plan.layers is None else ",".join(map(str, plan.layers))
    print(f"reference {reference.name}: {reference.config.n_layer} layers, width {reference.config.n_embd}")
    print(f"student   {plan.config.name}: {plan.config.n_layer} layers, init {options.init}, from layers {chosen}")
    print(
        f"          {plan.parameters:,} parameters, {plan.non_embedding_parameters:,} without embeddings,"
        f" {plan.nbytes:,} bytes of {str(plan.dtype).removeprefix('torch.')}"
    )
    print(f"          to {out_dir}")
