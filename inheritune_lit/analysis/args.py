"""Arguments of ``inheritune analyze``. Free of torch, so that help and errors are instant."""

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from inheritune_lit.errors import UserError
from inheritune_lit.io.arguments import CommandArgs, check_numbers

_RECORDED = "num_sequences seq_length tau protocol seed maps map_layers map_heads gradients drop_length drop_sequences"


@dataclass(frozen=True)
class AnalyzeArgs(CommandArgs):
    """Measure what a model's layers and heads do: attention rank and mass, sinks, influence, loss without them."""

    aliases: ClassVar[dict[str, str]] = {"checkpoint_dir": "ref"}

    ref: str
    """The model: any reference that ``inheritune slice`` reads, such as a known name or a checkpoint folder."""
    data: Path
    """Packed data from ``inheritune prepare`` (its validation part), or a file or folder of text."""
    out_dir: Path
    """Folder of the result: analysis.json, the page analysis.md, and figures. An analysis with the same settings that
    it holds already is not measured again, only drawn."""
    _: KW_ONLY
    num_sequences: int = 100
    """Random sequences (paper, Section 2: 100)."""
    seq_length: int = 100
    """Tokens per sequence (paper, Section 2: 100)."""
    tau: float = 0.9
    """Share of the squared singular values, or of the columns' squared norms, that rank and mass hold."""
    protocol: Literal["v2", "v4"] = "v4"
    """Which version of the paper defines a lazy layer: "v4" takes the mean over the sequences, then the largest head;
    "v2" the largest head of each sequence, then the mean."""
    maps: Literal["none", "causal", "full"] = "full"
    """Attention maps of some heads: "full" without a mask as the paper's Figure 2, "causal" as computed."""
    map_layers: str | None = None
    """Layers of the maps, such as 4,7,20,22 or first:3; those of Figure 2, scaled, when not given."""
    map_heads: list[int] | None = None
    """Heads of the maps; all when not given."""
    gradients: bool = True
    """Measure gradients of queries and keys: one backward pass."""
    drop_length: int = 1
    """Longest span of layers that is left out to measure the loss without it; 0 for none. The cost grows with the
    number of spans times the number of layers."""
    drop_sequences: int = 20
    """Sequences for that, the first ones of all."""
    seed: int = 1337
    """Chooses the sequences."""
    compare: Path | None = None
    """Out_dir of another analysis, to draw the two models side by side."""
    dry_run: bool = False
    """Print the cost and stop."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.tau <= 1:
            raise UserError(f"--tau is {self.tau}; give a share above 0 and at most 1, such as 0.9")
        least = {"num_sequences": 1, "seq_length": 2, "drop_length": 0, "drop_sequences": 1, "seed": 0}
        for name, minimum in least.items():
            check_numbers(self, name, least=minimum)

    @property
    def dropping(self) -> int:
        """Sequences that the loss without some layers is measured on."""
        return min(self.drop_sequences, self.num_sequences) if self.drop_length else 0

    def settings(self) -> dict[str, Any]:
        """Everything that changes what is measured, as analysis.json records it."""
        return {name: getattr(self, name) for name in _RECORDED.split()} | {"data": str(self.data)}
