"""What to measure: the options of ``inheritune analyze``."""

from dataclasses import dataclass
from typing import Literal

from inheritune_lit.analysis.rank import check_tau
from inheritune_lit.errors import UserError

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
