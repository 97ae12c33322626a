"""Arguments of ``inheritune slice``, and the layers that they choose from a reference of a certain depth."""

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Literal

from inheritune_lit.errors import UserError
from inheritune_lit.inherit.layers import parse_layers
from inheritune_lit.io.arguments import CommandArgs

PARTS = ("attn", "mlp", "norm")


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

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "ref", str(self.ref))
        for part in self.inherited_parts:
            if part not in PARTS:
                raise UserError(
                    f"--parts {self.parts}: {part!r} is not a part of a layer; use any of {','.join(PARTS)}"
                )
        if self.n is not None and self.n < 1:
            raise UserError(f"--n {self.n} is below 1; give the number of layers to take")
        if self.init in ("stack", "hybrid-stack"):
            if self.n is None:
                raise UserError(f"--init {self.init} needs --n: the number of layers after stacking")
            if self.init == "hybrid-stack" and self.layers is None and self.n % 2:
                raise UserError(
                    f"--init hybrid-stack repeats the first half, and --n {self.n} is odd; give --layers too"
                )
        elif self.n is not None and self.layers is not None:
            raise UserError(
                f"--n {self.n} and --layers {self.layers} both choose layers; give one (--n N is --layers first:N)"
            )
        elif self.n is None and self.layers is None and self.init != "half-width":
            raise UserError("give --n or --layers: which layers to take")

    @property
    def inherited_parts(self) -> tuple[str, ...]:
        """``parts`` as a tuple: ("attn", "mlp") for "attn,mlp"."""
        return tuple(part.strip() for part in self.parts.split(",") if part.strip())


def layer_map(args: SliceArgs, depth: int) -> list[int]:
    """The reference's layer behind each layer of the student. With ``init="random"`` only its length counts.

    ``stack`` repeats all layers of a shallow reference up to n layers, as when a model trained at depth n/2 is grown;
    ``hybrid-stack`` repeats the first n/2 (or ``layers``) of a deep one (both: paper, Section 4.1). ``half-width``
    takes all layers unless told otherwise.

    Raises:
        UserError: arguments that do not fit the depth.
    """
    n, layers = args.n, args.layers
    if layers is not None:
        chosen = parse_layers(layers, depth)
    elif n is None or args.init == "stack":
        chosen = list(range(depth))
    elif args.init == "hybrid-stack":
        chosen = parse_layers(f"first:{n // 2}", depth)
    elif n > depth:
        raise UserError(f"--n {n} is more than the reference's {depth} layers; give 1 to {depth}")
    else:
        chosen = list(range(n))
    if args.init not in ("stack", "hybrid-stack"):
        return chosen
    assert n is not None, "checked with the arguments"
    if n % len(chosen):
        raise UserError(f"--n {n} is not a multiple of the {len(chosen)} layers that are stacked")
    return chosen * (n // len(chosen))
