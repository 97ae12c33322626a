"""``inheritune slice``, ``references`` and ``export``."""

from pathlib import Path
from typing import Literal


def slice_command(
    ref: str,
    n: int | None = None,
    layers: str | None = None,
    out_dir: Path | None = None,
    init: Literal["inherit", "random", "stack", "hybrid-stack", "half-width"] = "inherit",
    parts: str = "attn,mlp,norm",
    embeddings: bool = True,
    final_norm: bool = True,
    head: bool = True,
    positions: bool = True,
    attn_scale: Literal["position", "keep"] = "position",
    hash_sources: bool = True,
    tokenizer_dir: Path | None = None,
    seed: int = 1337,
    dry_run: bool = False,
) -> None:
    """Build a small model out of the layers of a pretrained one.

    Args:
        ref: the reference: a known name (see ``inheritune references``) or hub repository, with ``@`` and a branch, tag
            or commit behind it where it shall not be the main branch; a folder (Hugging Face or litgpt) or a GGUF file.
        n: take the first n layers; short for ``--layers first:n``.
        layers: which layers to take: first:n, last:n, middle:n, alternate, last, 0:26:2, or 0,3,5-9, joined by +.
        out_dir: folder of the new litgpt checkpoint; ``checkpoints/<org>/<name>-<n>l`` when not given.
        init: "inherit" copies the reference's weights; "random" takes only its shape and tokenizer; "stack" repeats all
            its layers up to n, "hybrid-stack" its first n/2; "half-width" takes half of the heads and of the MLP.
        parts: sub-modules of a layer that are inherited, any of attn,mlp,norm; the rest is random.
        embeddings: inherit the token embeddings.
        final_norm: inherit the norm before the head.
        head: inherit the prediction head.
        positions: inherit the learned positions of a GPT-2 model.
        attn_scale: for GPT-2 models whose attention logits are divided by the layer's number: "position" takes the new
            number, as the paper's code does, "keep" the one in the reference.
        hash_sources: record the SHA-256 of the reference's files; local files are read whole for it.
        tokenizer_dir: folder of GPT-2's tokenizer, for a paper-gpt2 model, which has no weights; from the hub when
            not given.
        seed: seed of random weights.
        dry_run: print the plan and stop.
    """
    from inheritune_lit.inherit.args import parse_parts
    from inheritune_lit.inherit.slice import slice_reference as run

    run(
        ref,
        n=n,
        layers=layers,
        out_dir=out_dir,
        init=init,
        parts=parse_parts(parts),
        embeddings=embeddings,
        final_norm=final_norm,
        head=head,
        positions=positions,
        attn_scale=attn_scale,
        hash_sources=hash_sources,
        tokenizer_dir=tokenizer_dir,
        seed=seed,
        dry_run=dry_run,
    )


def list_references_command() -> None:
    """List the named references: layers, width, parameters, size on disk, licence."""
    from inheritune_lit.references import reference_table

    print(reference_table())


def export_command(
    checkpoint_dir: Path, out_dir: Path, max_shard_bytes: int = 5_000_000_000, licence: str | None = None
) -> None:
    """Write a checkpoint as a Hugging Face folder.

    Args:
        checkpoint_dir: litgpt checkpoint, such as a slice or the ``final/`` of a run.
        out_dir: the new folder.
        max_shard_bytes: bytes a safetensors file.
        licence: licence for the model card, such as apache-2.0; the named reference's when not given.
    """
    from inheritune_lit.checkpoint.export import export as run

    run(checkpoint_dir, out_dir, max_shard_bytes=max_shard_bytes, licence=licence)
