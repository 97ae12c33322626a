"""Named references: what ``--ref openllama-3b`` means."""

from dataclasses import dataclass

from inheritune_lit.errors import UserError, suggest


@dataclass(frozen=True)
class Reference:
    """A pretrained model on the hub.

    Attributes:
        name: what users type.
        repository: hub repository, ``org/name``.
        layers, width: depth and embedding size.
        parameters: number of parameters, a tied head counted once.
        gigabytes: size of its weights on the hub, 10^9 bytes, without buffers such as old causal masks.
        licence: as the repository states it.
        gated: access has to be asked for.
    """

    name: str
    repository: str
    layers: int
    width: int
    parameters: int
    gigabytes: float
    licence: str
    gated: bool = False


def _pythia(size: str, layers: int, width: int, parameters: int) -> Reference:
    # The repositories hold fp16 weights and old causal masks.
    return Reference(
        f"pythia-{size}", f"EleutherAI/pythia-{size}", layers, width, parameters, 2 * parameters / 1e9, "apache-2.0"
    )


def _gpt2(name: str, layers: int, width: int, parameters: int) -> Reference:
    # fp32 weights.
    return Reference(name, f"openai-community/{name}", layers, width, parameters, 4 * parameters / 1e9, "mit")


REFERENCES = (
    Reference("openllama-3b", "openlm-research/open_llama_3b", 26, 3200, 3_426_473_600, 6.85, "apache-2.0"),
    Reference("openllama-3b-v2", "openlm-research/open_llama_3b_v2", 26, 3200, 3_426_473_600, 6.85, "apache-2.0"),
    Reference("openllama-7b", "openlm-research/open_llama_7b", 32, 4096, 6_738_415_616, 13.48, "apache-2.0"),
    Reference("openllama-7b-v2", "openlm-research/open_llama_7b_v2", 32, 4096, 6_738_415_616, 13.48, "apache-2.0"),
    Reference("llama2-7b", "meta-llama/Llama-2-7b-hf", 32, 4096, 6_738_415_616, 13.48, "llama2", gated=True),
    Reference(
        "tinyllama-1.1b",
        "TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T",
        22,
        2048,
        1_100_048_384,
        4.40,
        "apache-2.0",
    ),
    Reference("smollm2-135m", "HuggingFaceTB/SmolLM2-135M", 30, 576, 134_515_008, 0.27, "apache-2.0"),
    Reference("smollm2-360m", "HuggingFaceTB/SmolLM2-360M", 32, 960, 361_821_120, 0.72, "apache-2.0"),
    Reference("smollm2-1.7b", "HuggingFaceTB/SmolLM2-1.7B", 24, 2048, 1_711_376_384, 3.42, "apache-2.0"),
    Reference("llama3.2-1b", "meta-llama/Llama-3.2-1B", 16, 2048, 1_235_814_400, 2.47, "llama3.2", gated=True),
    _pythia("14m", 6, 128, 14_067_712),
    _pythia("31m", 6, 256, 30_494_720),
    _pythia("70m", 6, 512, 70_426_624),
    _pythia("160m", 12, 768, 162_322_944),
    _pythia("410m", 24, 1024, 405_334_016),
    _pythia("1b", 16, 2048, 1_011_781_632),
    _pythia("1.4b", 24, 2048, 1_414_647_808),
    _pythia("2.8b", 32, 2560, 2_775_208_960),
    _pythia("6.9b", 32, 4096, 6_857_302_016),
    _pythia("12b", 36, 5120, 11_846_072_320),
    _gpt2("gpt2", 12, 768, 124_439_808),
    _gpt2("gpt2-medium", 24, 1024, 354_823_168),
    _gpt2("gpt2-large", 36, 1280, 774_030_080),
    _gpt2("gpt2-xl", 48, 1600, 1_557_611_200),
)


@dataclass(frozen=True)
class Shape:
    """A model to train from scratch, whose weights nobody has published; its tokenizer is GPT-2's.

    Attributes:
        name: what users type.
        layers, width, heads: its shape.
    """

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


def find_shape(name: str) -> Shape | None:
    """The named shape, or None."""
    return next((shape for shape in SHAPES if shape.name == name.lower()), None)


def reference_table() -> str:
    """The named references and shapes as aligned text, one per line; no network is used."""
    rows = [("name", "layers", "width", "parameters", "size", "licence", "repository")]
    rows += [
        (
            reference.name,
            str(reference.layers),
            str(reference.width),
            f"{reference.parameters:,}",
            f"{reference.gigabytes:.2f} GB",
            reference.licence + (", gated" if reference.gated else ""),
            reference.repository,
        )
        for reference in REFERENCES
    ]
    rows += [
        (shape.name, str(shape.layers), str(shape.width), f"{shape.parameters:,}", "", "", "none: --init random")
        for shape in SHAPES
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    right = (1, 2, 3, 4)
    lines = [
        "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join(lines)


def find_reference(name: str) -> Reference | None:
    """The named reference, or None."""
    return next((reference for reference in REFERENCES if reference.name == name.lower()), None)


def unknown_reference(name: str) -> UserError:
    """The error for a name that is not a reference, a folder or a hub repository, with near names."""
    known = [reference.name for reference in (*REFERENCES, *SHAPES)]
    hint = suggest(name, known, f"known names: {', '.join(known)}", most=3, cutoff=0.5)
    return UserError(f"unknown reference {name!r}: no such folder, known name or hub repository (org/name); {hint}")
