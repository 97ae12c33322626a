"""Named references: what ``--ref openllama-3b`` means."""

from dataclasses import dataclass

from inheritune_lit.errors import UserError, suggest
from inheritune_lit.io.tables import own_table


@dataclass(frozen=True)
class Reference:
    """A pretrained model on the hub."""

    name: str  # what users type
    repository: str  # org/name on the hub
    layers: int
    width: int
    parameters: int  # a tied head counted once
    licence: str  # as the repository states it
    stored: int  # bytes per parameter of the weights on the hub
    gated: bool  # access has to be asked for


def _read(row: dict[str, str]) -> Reference:
    numbers = {name: int(row[name]) for name in ("layers", "width", "parameters", "stored")}
    return Reference(row["name"], row["repository"], licence=row["licence"], gated=row["gated"] == "yes", **numbers)


REFERENCES: tuple[Reference, ...] = tuple(map(_read, own_table(__file__)))


@dataclass(frozen=True)
class Shape:
    """A model to train from scratch, whose weights nobody has published; its tokenizer is GPT-2's."""

    name: str
    layers: int
    width: int
    heads: int

    @property
    def parameters(self) -> int:
        """Matrices and two norms per layer, token embedding (the head is tied), 1,024 positions, and the last norm."""
        return self.layers * (12 * self.width**2 + 2 * self.width) + (50304 + 1024 + 1) * self.width


# The reference models of the paper's Table 10; its half-width ones are made of these by --init half-width.
SHAPES = (
    Shape("paper-gpt2-medium", 24, 1024, 16),
    Shape("paper-gpt2-large", 36, 1280, 20),
    Shape("paper-gpt2-large-32l", 32, 1280, 20),
    Shape("paper-gpt2-xlarge", 48, 1600, 25),
)
TOKENIZER_OF_SHAPES = "openai-community/gpt2"
_NAMED: tuple[Reference | Shape, ...] = (*REFERENCES, *SHAPES)


def find_shape(name: str) -> Shape | None:
    """The named shape, or None."""
    return next((shape for shape in SHAPES if shape.name == name.lower()), None)


def reference_table() -> str:
    """The named references and shapes as aligned text, one per line; no network is used."""
    rows = [("name", "layers", "width", "parameters", "size", "licence", "repository")]
    for each in _NAMED:
        rest = ("", "", "none: --init random")
        if isinstance(each, Reference):
            size = f"{each.parameters * each.stored / 1e9:.2f} GB"
            rest = (size, each.licence + ", gated" * each.gated, each.repository)
        rows.append((each.name, str(each.layers), str(each.width), f"{each.parameters:,}", *rest))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    line = "  ".join(f"{{:{side}{width}}}" for side, width in zip("<>>>><<", widths, strict=True))
    return "\n".join(line.format(*row).rstrip() for row in rows)


def find_reference(name: str) -> Reference | None:
    """The named reference, or None."""
    return next((reference for reference in REFERENCES if reference.name == name.lower()), None)


def unknown_reference(name: str) -> UserError:
    """The error for a name that is not a reference, a folder or a hub repository, with near names."""
    known = [each.name for each in _NAMED]
    hint = suggest(name, known, f"known names: {', '.join(known)}", most=3, cutoff=0.5)
    return UserError(f"unknown reference {name!r}: no such folder, known name or hub repository (org/name); {hint}")
