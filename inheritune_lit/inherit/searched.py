"""What a search of layers found: the content of ``search.json``. Free of torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inheritune_lit.checkpoint.config import Config
from inheritune_lit.errors import UserError
from inheritune_lit.io.records import read_record

SEARCH = "search.json"


@dataclass(frozen=True)
class ScoredLayers:
    """Layers of the reference, counted from 0, and their score in nats per token with its standard error."""

    layers: list[int]
    score: float
    stderr: float  # over the sequences; NaN of one


@dataclass(frozen=True)
class SearchedModel:
    """The reference; ``source`` is where it was read, ``files`` are names and SHA-256 of its weights' files."""

    name: str
    source: str
    revision: str | None
    files: dict[str, str | None]
    shape: dict[str, int]  # litgpt's fields


ByDepth = dict[str, ScoredLayers]  # by number of layers n, as a string


@dataclass(frozen=True)
class Search:
    """Layers by n, from one less than the reference has, down to the lowest so far.

    ``found`` are the best of each round; ``beam`` are the subsets that the next round removes a layer from. Those of
    ``compared``, by way, are chosen without search.
    """

    model: SearchedModel
    settings: dict[str, Any]
    data: str  # its path; its hash is in the settings
    n_min: int  # where the search is to end
    whole: ScoredLayers
    block_influence: list[float]  # of each layer
    found: ByDepth
    beam: list[list[int]]
    compared: dict[str, ByDepth]

    @property
    def lowest(self) -> int:
        """The lowest n that layers were found for, the reference's own before the first round."""
        return len(self.whole.layers) - len(self.found)

    @property
    def finished(self) -> bool:
        """Whether everything that was asked for is there."""
        return self.lowest <= self.n_min and all(len(ways) == len(self.found) for ways in self.compared.values())


def searched_shape(config: Config) -> dict[str, int]:
    """Returns the sizes that two models have in common when one was searched for the other."""
    names = "n_layer", "n_head", "n_query_groups", "n_embd", "intermediate_size", "padded_vocab_size"
    return {name: getattr(config, name) for name in names}


def load_search(folder: Path) -> Search:
    """Reads the result of a search from its folder; one that holds none, or is damaged, is a ``UserError``."""
    remedy = "give the --out_dir of `inheritune search`"
    if not (folder / SEARCH).is_file():
        raise UserError(f"{folder} does not hold a search of layers: {SEARCH} is not there; {remedy}")
    return read_record(folder / SEARCH, Search, "the result of a search", remedy)
