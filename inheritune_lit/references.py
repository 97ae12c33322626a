"""Named references: what ``--ref openllama-3b`` means."""

from dataclasses import dataclass

from inheritune_lit.errors import UserError, suggest


@dataclass(frozen=True)
class Reference:
    """A pretrained model on the hub."""

    name: str  # what users type
    repository: str  # org/name on the hub
    layers: int
    width: int
    parameters: int  # a tied head counted once
    licence: str  # as the repository states it
    stored: int = 2  # bytes per parameter of the weights on the hub
    gated: bool = False  # access has to be asked for


_TINYLLAMA = "TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T"
REFERENCES = (
    Reference("openllama-3b", "openlm-research/open_llama_3b", 26, 3200, 3_426_473_600, "apache-2.0"),
    Reference("openllama-3b-v2", "openlm-research/open_llama_3b_v2", 26, 3200, 3_426_473_600, "apache-2.0"),
    Reference("openllama-7b", "openlm-research/open_llama_7b", 32, 4096, 6_738_415_616, "apache-2.0"),
    Reference("openllama-7b-v2", "openlm-research/open_llama_7b_v2", 32, 4096, 6_738_415_616, "apache-2.0"),
    Reference("llama2-7b", "meta-llama/Llama-2-7b-hf", 32, 4096, 6_738_415_616, "llama2", gated=True),
    Reference("tinyllama-1.1b", _TINYLLAMA, 22, 2048, 1_100_048_384, "apache-2.0", stored=4),
    Reference("smollm2-135m", "HuggingFaceTB/SmolLM2-135M", 30, 576, 134_515_008, "apache-2.0"),
    Reference("smollm2-360m", "HuggingFaceTB/SmolLM2-360M", 32, 960, 361_821_120, "apache-2.0"),
    Reference("smollm2-1.7b", "HuggingFaceTB/SmolLM2-1.7B", 24, 2048, 1_711_376_384, "apache-2.0"),
    Reference("llama3.2-1b", "meta-llama/Llama-3.2-1B", 16, 2048, 1_235_814_400, "llama3.2", gated=True),
    Reference("pythia-14m", "EleutherAI/pythia-14m", 6, 128, 14_067_712, "apache-2.0"),
    Reference("pythia-31m", "EleutherAI/pythia-31m", 6, 256, 30_494_720, "apache-2.0"),
    Reference("pythia-70m", "EleutherAI/pythia-70m", 6, 512, 70_426_624, "apache-2.0"),
    Reference("pythia-160m", "EleutherAI/pythia-160m", 12, 768, 162_322_944, "apache-2.0"),
    Reference("pythia-410m", "EleutherAI/pythia-410m", 24, 1024, 405_334_016, "apache-2.0"),
    Reference("pythia-1b", "EleutherAI/pythia-1b", 16, 2048, 1_011_781_632, "apache-2.0"),
    Reference("pythia-1.4b", "EleutherAI/pythia-1.4b", 24, 2048, 1_414_647_808, "apache-2.0"),
    Reference("pythia-2.8b", "EleutherAI/pythia-2.8b", 32, 2560, 2_775_208_960, "apache-2.0"),
    Reference("pythia-6.9b", "EleutherAI/pythia-6.9b", 32, 4096, 6_857_302_016, "apache-2.0"),
    Reference("pythia-12b", "EleutherAI/pythia-12b", 36, 5120, 11_846_072_320, "apache-2.0"),
    Reference("gpt2", "openai-community/gpt2", 12, 768, 124_439_808, "mit", stored=4),
    Reference("gpt2-medium", "openai-community/gpt2-medium", 24, 1024, 354_823_168, "mit", stored=4),
    Reference("gpt2-large", "openai-community/gpt2-large", 36, 1280, 774_030_080, "mit", stored=4),
    Reference("gpt2-xl", "openai-community/gpt2-xl", 48, 1600, 1_557_611_200, "mit", stored=4),
)


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


def find_shape(name: str) -> Shape | None:
    """The named shape, or None."""
    return next((shape for shape in SHAPES if shape.name == name.lower()), None)


def reference_table() -> str:
    """The named references and shapes as aligned text, one per line; no network is used."""
    rows = [("name", "layers", "width", "parameters", "size", "licence", "repository")]
    for each in (*REFERENCES, *SHAPES):
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
    known = [reference.name for reference in (*REFERENCES, *SHAPES)]
    hint = suggest(name, known, f"known names: {', '.join(known)}", most=3, cutoff=0.5)
    return UserError(f"unknown reference {name!r}: no such folder, known name or hub repository (org/name); {hint}")
