"""What to build out of a reference: the options of ``inheritune slice``, checked against the reference's depth."""

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Literal

from inheritune_lit.errors import UserError
from inheritune_lit.inherit.layers import parse_layers
from inheritune_lit.io.arguments import CommandArgs

INITS = ("inherit", "random", "stack", "hybrid-stack", "half-width")
PARTS = ("attn", "mlp", "norm")


@dataclass(frozen=True)
class SliceOptions:
    """Options of a slice.

    Attributes:
        n: number of layers.
        layers: which layers, see ``parse_layers``.
        init: one of ``INITS``.
        parts: sub-modules of a block that are inherited (the paper's Table 3); the others are initialised afresh.
        embeddings, final_norm, head: whether these are inherited.
        positions: whether learned positions are inherited, of a model that has them.
        attn_scale: where GPT-2's attention logits are divided by the layer number: "position" takes the student's own
            (the paper's code), "keep" the number that the layer had in the reference.
        hash_sources: record the SHA-256 of the local files that feed the student, which reads them whole.
        seed: seed of what is not inherited.
    """

    n: int | None = None
    layers: str | None = None
    init: str = "inherit"
    parts: tuple[str, ...] = PARTS
    embeddings: bool = True
    final_norm: bool = True
    head: bool = True
    attn_scale: str = "position"
    hash_sources: bool = True
    positions: bool = True
    seed: int = 1337


def parse_parts(text: str) -> tuple[str, ...]:
    """``attn,mlp`` -> ("attn", "mlp").

    Raises:
        UserError: a word that is no part.
    """
    parts = tuple(part.strip() for part in text.split(",") if part.strip())
    for part in parts:
        if part not in PARTS:
            raise UserError(f"--parts {text}: {part!r} is no part of a layer; use any of {','.join(PARTS)}")
    return parts


def layer_map(options: SliceOptions, depth: int) -> list[int]:
    """The reference's layer behind each layer of the student. With ``init="random"`` only its length counts.

    ``stack`` repeats all layers of a shallow reference up to n layers, as when a model trained at depth n/2 is grown;
    ``hybrid-stack`` repeats the first n/2 (or ``layers``) of a deep one (both: paper, Section 4.1). ``half-width``
    takes all layers unless told otherwise.

    Raises:
        UserError: options that don't go together or don't fit the depth.
    """
    n, layers = options.n, options.layers
    if n is not None and n < 1:
        raise UserError(f"--n {n} is below 1; give the number of layers to take, at most {depth}")
    if options.init in ("stack", "hybrid-stack"):
        return _stacked(options, depth)
    if n is not None and layers is not None:
        raise UserError(f"--n {n} and --layers {layers} both choose layers; give one (--n N is --layers first:N)")
    if layers is not None:
        return parse_layers(layers, depth)
    if n is None:
        if options.init == "half-width":
            return list(range(depth))
        raise UserError("give --n or --layers: which layers to take")
    if n > depth:
        raise UserError(f"--n {n} is more than the reference's {depth} layers; give 1 to {depth}")
    return list(range(n))


def _stacked(options: SliceOptions, depth: int) -> list[int]:
    if options.n is None:
        raise UserError(f"--init {options.init} needs --n: the number of layers after stacking")
    if options.layers is not None:
        block = parse_layers(options.layers, depth)
    elif options.init == "stack":
        block = list(range(depth))
    else:
        if options.n % 2:
            raise UserError(
                f"--init hybrid-stack repeats the first half, and --n {options.n} is odd; give --layers too"
            )
        block = parse_layers(f"first:{options.n // 2}", depth)
    if options.n % len(block):
        raise UserError(f"--n {options.n} is no multiple of the {len(block)} layers that are stacked")
    return block * (options.n // len(block))


@dataclass(frozen=True)
class SliceArgs(CommandArgs):
    """Build a small model out of the layers of a pretrained one."""

    ref: str
    """The reference: a known name (see ``inheritune references``) or hub repository, with ``@`` and a branch, tag
    or commit behind it where it shall not be the main branch; a folder (Hugging Face or litgpt) or a GGUF file."""
    _: KW_ONLY
    n: int | None = None
    """Take the first n layers; short for ``--layers first:n``."""
    layers: str | None = None
    """Which layers to take: first:n, last:n, middle:n, alternate, last, 0:26:2, or 0,3,5-9, joined by +."""
    out_dir: Path | None = None
    """Folder of the new litgpt checkpoint; ``checkpoints/<org>/<name>-<n>l`` when not given."""
    init: Literal["inherit", "random", "stack", "hybrid-stack", "half-width"] = "inherit"
    """"inherit" copies the reference's weights; "random" takes only its shape and tokenizer; "stack" repeats all
    its layers up to n, "hybrid-stack" its first n/2; "half-width" takes half of the heads and of the MLP."""
    parts: str = "attn,mlp,norm"
    """Sub-modules of a layer that are inherited, any of attn,mlp,norm; the rest is random."""
    embeddings: bool = True
    """Inherit the token embeddings."""
    final_norm: bool = True
    """Inherit the norm before the head."""
    head: bool = True
    """Inherit the prediction head."""
    positions: bool = True
    """Inherit the learned positions of a GPT-2 model."""
    attn_scale: Literal["position", "keep"] = "position"
    """For GPT-2 models whose attention logits are divided by the layer's number: "position" takes the new number,
    as the paper's code does, "keep" the one in the reference."""
    hash_sources: bool = True
    """Record the SHA-256 of the reference's files; local files are read whole for it."""
    tokenizer_dir: Path | None = None
    """Folder of GPT-2's tokenizer, for a paper-gpt2 model, which has no weights; from the hub when not given."""
    seed: int = 1337
    """Seed of random weights."""
    dry_run: bool = False
    """Print the plan and stop."""
