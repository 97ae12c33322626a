"""Arguments of ``inheritune slice``, the syntax of ``--layers``, and the layers that both choose from a reference."""

import re
from collections.abc import Iterable
from dataclasses import KW_ONLY, dataclass
from itertools import groupby
from pathlib import Path
from typing import Literal

from inheritune_lit.errors import UserError
from inheritune_lit.io.arguments import CommandArgs

PARTS = ("attn", "mlp", "norm")
AttnScale = Literal["position", "keep"]


@dataclass(frozen=True)
class SliceArgs(CommandArgs):
    """Build a small model from the layers of a pretrained one."""

    ref: str
    """The reference: a known name (see ``inheritune references``) or hub repository, with ``@`` and a branch, tag
    or commit behind it if it is not the main branch; a folder (Hugging Face or litgpt) or a GGUF file."""
    _: KW_ONLY
    n: int | None = None
    """Take the first n layers; short for ``--layers first:n``."""
    layers: str | None = None
    """Which layers to take: first:n, last:n, middle:n, alternate, last, 0:26:2, or 0,3,5-9, joined by +."""
    search: Path | None = None
    """Take the n layers that ``inheritune search`` has found: its folder."""
    repair: Literal["linear"] | None = None
    """With a search: change the MLP before each cut by a linear map, fitted on the search's sequences."""
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
    attn_scale: AttnScale = "position"
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

    def __post_init__(self) -> None:
        super().__post_init__()
        for part in self.inherited_parts:
            if part not in PARTS:
                known = ",".join(PARTS)
                raise UserError(f"--parts {self.parts}: {part!r} is not a part of a layer; use any of {known}")
        n, layers, init = self.n, self.layers, self.init
        if n is not None and n < 1:
            raise UserError(f"--n {n} is below 1; give the number of layers to take")
        if self.search is not None and (n is None or layers is not None):
            given = "no --n" if layers is None else f"--layers {layers}"
            raise UserError(f"--search {self.search} chooses the layers, and {given} is given; give --n beside it")
        if self.search is not None and init in ("stack", "hybrid-stack"):
            raise UserError(f"--search {self.search} chooses layers to keep, --init {init} repeats layers; give one")
        if self.repair and (self.search is None or init != "inherit" or set(self.inherited_parts) != set(PARTS)):
            lacks = "needs the sequences of a --search" if self.search is None else "is for layers inherited whole"
            raise UserError(f"--repair {self.repair} {lacks}; give one or leave --repair out")
        if init in ("stack", "hybrid-stack"):
            if n is None:
                raise UserError(f"--init {init} needs --n: the number of layers after stacking")
            if init == "hybrid-stack" and layers is None and n % 2:
                raise UserError(f"--init hybrid-stack repeats the first half, and --n {n} is odd; give --layers too")
        elif n is not None and layers is not None:
            raise UserError(f"--n {n} and --layers {layers} both choose layers; give one (--n N is --layers first:N)")
        elif n is None and layers is None and init != "half-width":
            raise UserError("give --n or --layers: which layers to take")

    @property
    def inherited_parts(self) -> tuple[str, ...]:
        """``parts`` as a tuple: ("attn", "mlp") for "attn,mlp"."""
        return tuple(part.strip() for part in self.parts.split(",") if part.strip())


def layer_map(args: SliceArgs, depth: int) -> list[int]:
    """The reference's layer behind each layer of the student. With ``init="random"`` only its length counts.

    ``stack`` repeats all layers of a shallow reference up to n layers, as when a model trained at depth n/2 is grown;
    ``hybrid-stack`` repeats the first n/2 (or ``layers``) of a deep one (both: paper, Section 4.1). ``half-width``
    takes all layers unless told otherwise. Arguments that do not fit the depth are a ``UserError``.
    """
    n, stacks = args.n, args.init in ("stack", "hybrid-stack")
    if args.layers is not None:
        chosen = parse_layers(args.layers, depth)
    elif n is None or args.init == "stack":
        chosen = list(range(depth))
    elif n > depth and not stacks:
        raise UserError(f"--n {n} is more than the reference's {depth} layers; give 1 to {depth}")
    else:
        chosen = parse_layers(f"first:{n // 2 if stacks else n}", depth)
    if n is None or not stacks:
        return chosen
    if n % len(chosen):
        raise UserError(f"--n {n} is not a multiple of the {len(chosen)} layers that are stacked")
    return chosen * (n // len(chosen))


_SYNTAX = "first:n, last:n, middle:n, alternate, last, start:stop:step, or a list such as 0,3,5-9; join with +"


def parse_layers(text: str, depth: int) -> list[int]:
    """Turn a layer selection into layer numbers of a reference of a depth, counted from 0, in the student's order.

    ``first:n``, ``last:n`` (``last`` is one layer), ``middle:n``, ``alternate`` (0, 2, 4, ...), ``a:b`` and ``a:b:c``
    as in Python, ``5-9`` with both ends, single numbers; terms are joined by ``,`` or ``+``. After a ``+`` a bare
    ``last`` that the terms before already end with adds nothing. Layers may repeat and go backwards. A text of another
    form, or layers the reference does not have, are a ``UserError``.
    """
    layers: list[int] = []
    for term in re.split(r"[,+]", text.replace(" ", "")):
        if term != "last" or layers[-1:] != [depth - 1]:
            layers += _parse_term(term, text, depth)
    if not layers:
        raise UserError(f"--layers {text} selects no layer of the reference's {depth}; use {_SYNTAX}")
    return layers


def _parse_term(term: str, text: str, depth: int) -> list[int]:
    highest = 0
    if match := re.fullmatch(r"(first|last|middle):(\d+)", term):
        count = int(match[2])
        if not 1 <= count <= depth:
            raise UserError(f"--layers {text} asks for {count} layers; the reference has {depth}, give 1 to {depth}")
        start = {"first": 0, "last": depth - count, "middle": (depth - count) // 2}[match[1]]
        layers = range(start, start + count)
    elif term in ("last", "alternate"):
        layers = range(depth - 1, depth) if term == "last" else range(0, depth, 2)
    elif match := re.fullmatch(r"(\d+)(?:-(\d+))?", term):
        first, highest = int(match[1]), int(match[2] or match[1])
        if highest < first:
            raise UserError(f"--layers {text}: {term} runs backwards; write {highest}-{first}")
        layers = range(first, highest + 1)
    elif match := re.fullmatch(r"(\d*):(\d*)(?::([1-9]\d*))?", term):
        begin, end, step = (int(part) if part else None for part in match.groups())
        highest = max((end or 0) - 1, begin or 0)
        layers = range(depth)[begin:end:step]
    else:
        raise UserError(f"--layers {text}: {term or 'an empty term'} is not understood; use {_SYNTAX}")
    if highest >= depth:
        raise UserError(f"--layers {text} names layer {highest}; the reference has layers 0 to {depth - 1}")
    return list(layers)


def spread_layers(depth: int, n: int) -> list[int]:
    """n layers at equal distances from layer 0 on, every other one where n is half of the depth."""
    return [place * depth // n for place in range(n)]


def runs_of(layers: Iterable[int]) -> list[list[int]]:
    """First and last layer of each run of consecutive layers."""
    by_offset = groupby(enumerate(layers), key=lambda each: each[1] - each[0])
    runs = [[layer for _, layer in group] for _, group in by_offset]
    return [[run[0], run[-1]] for run in runs]


def layers_text(layers: Iterable[int]) -> str:
    """Layers as ``--layers`` takes them, such as 0-3,7."""
    return ",".join(f"{first}-{last}" if last > first else str(first) for first, last in runs_of(layers))
