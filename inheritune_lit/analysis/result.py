"""What an analysis found: the content of ``analysis.json``. Free of torch."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inheritune_lit.io.records import read_record

RESULT = "analysis.json"


@dataclass(frozen=True)
class AnalyzedModel:
    """The model; ``source`` is where it was read."""

    name: str
    source: str
    n_layer: int
    n_head: int
    n_embd: int
    parameters: int


@dataclass(frozen=True)
class ByHead:
    """Mean and sample standard deviation over the sequences, [layer][head]."""

    mean: list[list[float]]
    std: list[list[float]]


@dataclass(frozen=True)
class ByLayer:
    """Mean and sample standard deviation over the sequences, [layer]."""

    mean: list[float]
    std: list[float]


@dataclass(frozen=True)
class ProtocolV2:
    """Largest head of each sequence, then mean and deviation over the sequences (arXiv 2404.08634v2, Section 2)."""

    max_rank: ByLayer
    max_mass: ByLayer


@dataclass(frozen=True)
class ProtocolV4:
    """Mean over the sequences, then largest head and mean over the heads (arXiv 2404.08634v4), [layer] each."""

    max_rank: list[float]
    max_mass: list[float]
    avg_rank: list[float]
    avg_mass: list[float]


@dataclass(frozen=True)
class Protocols:
    """Rank and mass by both versions of the paper."""

    v2: ProtocolV2
    v4: ProtocolV4


@dataclass(frozen=True)
class LazyLayers:
    """Lazy layers, lazy groups ([first, last], both counted), and the first lazy layer, None where there is none."""

    layers: list[int]
    groups: list[list[int]]
    first: int | None


@dataclass(frozen=True)
class AttentionMap:
    """Attention of one head, [token][token]."""

    layer: int
    head: int
    weights: list[list[float]]


@dataclass(frozen=True)
class MapCollection:
    """Attention maps ("causal" or "full"): means over the first ``strings`` sequences of their first ``tokens``."""

    kind: str = "none"
    tokens: int = 0
    strings: int = 0
    attention: list[AttentionMap] = field(default_factory=list)


@dataclass(frozen=True)
class MeanLoss:
    """Loss in nats per token and its standard error, NaN of one sequence."""

    mean: float
    stderr: float


@dataclass(frozen=True)
class Measure:
    """What a number is."""

    formula: str
    source: str
    unit: str


@dataclass(frozen=True)
class Analysis:
    """Measures of a model's layers and heads, counted from 0; those that were not asked for are absent.

    The layers' drop_increase is drop_loss less the loss of the whole model on the same ``drop_sequences`` sequences,
    where ``loss`` is of all; their logit_lens_loss has one entry more, of the first 0, 1, ... layers.
    """

    model: AnalyzedModel
    settings: dict[str, Any]  # of ``AnalyzeArgs.settings``
    heads: dict[str, ByHead]  # by measure
    layers: dict[str, ByLayer]  # by measure
    protocols: Protocols
    lazy: LazyLayers  # by the protocol of the settings
    maps: MapCollection
    loss: MeanLoss
    measures: dict[str, Measure]  # what each of those above is, by name


def load_analysis(path: Path) -> Analysis:
    """Read the result of an analysis from its file, or the folder it is in; a ``UserError`` where it is damaged."""
    path = path / RESULT if path.is_dir() else path
    return read_record(path, Analysis, "the result of an analysis", "give the --out_dir of one")
