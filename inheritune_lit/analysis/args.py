"""What to measure: the options of ``inheritune analyze``."""

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Literal

from inheritune_lit.errors import UserError
from inheritune_lit.io.arguments import CommandArgs

Protocol = Literal["v2", "v4"]
MapKind = Literal["none", "causal", "full"]


@dataclass(frozen=True)
class AnalyzeOptions:
    """Options of an analysis.

    Attributes:
        num_sequences, seq_length: sequences, and tokens of each (paper, Section 2: 100 of 100).
        tau: threshold of rank and mass.
        protocol: which version of the paper says what a lazy layer is.
        seed: chooses the sequences.
        maps: attention maps: "full" without a mask as the paper's Figure 2, "causal" as the model computes it.
        map_layers: layers of the maps, as --layers of ``inheritune slice``; those of Figure 2, scaled, when None.
        map_heads: heads of the maps; all when None.
        gradients: measure the gradients of queries and keys, which takes a backward pass.
        drop_length: longest span of layers that is left out to see what the loss becomes; 0 for none.
        drop_sequences: sequences for that, the first of all.
    """

    num_sequences: int = 100
    seq_length: int = 100
    tau: float = 0.9
    protocol: Protocol = "v4"
    seed: int = 1337
    maps: MapKind = "full"
    map_layers: str | None = None
    map_heads: list[int] | None = None
    gradients: bool = True
    drop_length: int = 1
    drop_sequences: int = 20

    def __post_init__(self) -> None:
        check_tau(self.tau)
        least = {"num_sequences": 1, "seq_length": 2, "drop_length": 0, "drop_sequences": 1, "seed": 0}
        for name, minimum in least.items():
            if getattr(self, name) < minimum:
                raise UserError(f"--{name} is {getattr(self, name)}; give {minimum} or more")

    @property
    def dropping(self) -> int:
        """Sequences that layers are left out for."""
        return min(self.drop_sequences, self.num_sequences) if self.drop_length else 0


@dataclass(frozen=True)
class AdviceArgs:
    """The training that a slice is to get, for its cost."""

    max_tokens: int = 1_000_000_000
    """Tokens it is trained on"""
    gpu: str = "a100-80gb"
    """GPU, such as a6000, a100-80gb, h100, rtx4090"""
    mfu: float = 0.5
    """Share of the GPU's bf16 peak that training reaches"""
    micro_batch_size: int = 1
    """Samples a forward pass, for the memory"""
    max_seq_length: int | None = None
    """Tokens a sample; the model's block size, at most 2048, when not given"""


@dataclass(frozen=True)
class AnalyzeArgs(CommandArgs):
    """Measure what a model's layers and heads do: attention rank and mass, sinks, influence, loss without them."""

    data: Path
    """Packed data from ``inheritune prepare`` (its validation part), or a file or folder of text."""
    out_dir: Path
    """Folder of the result: analysis.json, the page analysis.md, and figures. The same analysis that it holds
    already is not measured again, only drawn."""
    _: KW_ONLY
    checkpoint_dir: Path | None = None
    """The model: a litgpt or Hugging Face folder."""
    ref: str | None = None
    """Instead, any reference that ``inheritune slice`` reads."""
    num_sequences: int = 100
    """Random sequences."""
    seq_length: int = 100
    """Tokens a sequence."""
    tau: float = 0.9
    """Share of the squared singular values, or of the columns' squared norms, that rank and mass hold."""
    protocol: Literal["v2", "v4"] = "v4"
    """Which version of the paper says what a lazy layer is: "v4" takes the mean over the sequences, then the
    largest head; "v2" the largest head of each sequence, then the mean."""
    maps: Literal["none", "causal", "full"] = "full"
    """Attention maps of some heads: "full" without a mask as the paper's Figure 2, "causal" as computed."""
    map_layers: str | None = None
    """Layers of the maps, such as 4,7,20,22 or first:3; those of Figure 2, scaled, when not given."""
    map_heads: list[int] | None = None
    """Heads of the maps; all when not given."""
    gradients: bool = True
    """Measure gradients of queries and keys: one backward pass."""
    drop_length: int = 1
    """Longest span of layers that is left out to see what the loss becomes; 0 for none. The cost grows with the
    number of spans times the number of layers."""
    drop_sequences: int = 20
    """Sequences for that."""
    seed: int = 1337
    """Chooses the sequences."""
    compare: Path | None = None
    """Out_dir of another analysis, to draw the two models side by side."""
    advise: bool = False
    """Tell for each n what is known before training: loss of the untrained slice, lazy layers left, parameters,
    memory, hours."""
    advice: AdviceArgs = AdviceArgs()
    """The training that --advise tells the cost of."""
    dry_run: bool = False
    """Print the cost and stop."""


def check_tau(tau: float) -> None:
    """Check a threshold.

    Raises:
        UserError: it is not in (0, 1].
    """
    if not 0 < tau <= 1:
        raise UserError(f"--tau is {tau}; give a share above 0 and at most 1, such as 0.9")
