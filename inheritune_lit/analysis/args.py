"""Arguments of ``inheritune analyze`` and ``search``. Free of torch, so that help and errors are instant."""

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from inheritune_lit.errors import UserError
from inheritune_lit.io.arguments import CommandArgs, check_numbers

_RECORDED = "num_sequences seq_length tau protocol seed maps map_layers map_heads drop_sequences"


@dataclass(frozen=True)
class SequenceArgs(CommandArgs):
    """Base of the arguments of commands that measure a model on some sequences."""

    aliases: ClassVar[dict[str, str]] = {"checkpoint_dir": "ref"}

    ref: str
    """The model: any reference that ``inheritune slice`` reads, such as a known name or a checkpoint folder."""
    data: Path
    out_dir: Path
    _: KW_ONLY
    num_sequences: int
    seq_length: int
    seed: int = 1337
    """Chooses the sequences."""
    dry_run: bool = False
    """Print the cost and stop."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, minimum in {"num_sequences": 1, "seq_length": 2, "seed": 0}.items():
            check_numbers(self, name, least=minimum)


@dataclass(frozen=True)
class AnalyzeArgs(SequenceArgs):
    """Measure what a model's layers and heads do: attention rank and mass, sinks, influence, loss without them."""

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
    drop_sequences: int = 20
    """Sequences, the first ones of all, to measure the loss without each layer on; 0 for none."""
    compare: Path | None = None
    """Out_dir of another analysis, to draw the two models side by side."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, "tau", most=1)
        check_numbers(self, "drop_sequences", least=0)

    @property
    def dropping(self) -> int:
        """Sequences that the loss without each layer is measured on."""
        return min(self.drop_sequences, self.num_sequences)

    def settings(self) -> dict[str, Any]:
        """Everything that changes what is measured, as analysis.json records it."""
        return {name: getattr(self, name) for name in _RECORDED.split()} | {"data": str(self.data)}


@dataclass(frozen=True)
class SearchArgs(SequenceArgs):
    """Search which layers of a model to keep: remove one after the other, that without which the model is best."""

    data: Path
    """Packed data from ``inheritune prepare`` (its training part), or a file or folder of text."""
    out_dir: Path
    """Folder of the result: search.json, the page search.md, and a figure. A search that it holds is continued."""
    _: KW_ONLY
    n_min: int | None = None
    """Number of layers to end at; a third of the model's when not given."""
    score: Literal["loss", "kl"] = "loss"
    """What tells the best layers: "loss" of the next token, or "kl", the divergence from the whole model's
    predictions."""
    repair: Literal["none", "linear"] | None = None
    """Score sets of layers as they are, or after a repair of their cuts as by ``slice --repair``, fitted on half of the
    sequences: nearer to what healing leaves. "linear" where it is possible, when not given."""
    beam: int = 1
    """Sets of layers that each round keeps and removes layers from; 1 is greedy search."""
    num_sequences: int = 16
    """Random sequences."""
    seq_length: int = 256
    """Tokens per sequence."""
    precision: Literal["32-true", "bf16-mixed"] | None = None
    """bf16-mixed where a GPU computes it natively, and 32-true elsewhere, when not given."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, "n_min", "beam", least=1)
        if self.repair == "linear" and self.num_sequences < 2:
            problem = f"--num_sequences {self.num_sequences}: a repair is fitted on half of the sequences"
            raise UserError(f"{problem}; give 2 or more, or --repair none")

    @property
    def fitted_sequences(self) -> int:
        """The first sequences, on which repairs are fitted; the others are scored."""
        return self.num_sequences // 2 if self.repair == "linear" else 0
