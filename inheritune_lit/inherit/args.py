"""What to build out of a reference: the options of ``inheritune slice``, checked against the reference's depth."""

from dataclasses import dataclass

from inheritune_lit.errors import UserError
from inheritune_lit.inherit.layers import parse_layers

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
