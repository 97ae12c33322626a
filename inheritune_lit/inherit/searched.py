"""What a search of layers found: the content of ``search.json``."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from inheritune_lit.checkpoint.config import Config
from inheritune_lit.errors import UserError
from inheritune_lit.io.manifest import sha256_file
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


@dataclass(frozen=True)
class SearchSettings:
    """Everything that changes what is found; ``data_sha256`` is of packed data, or of the sequences from text."""

    score: str
    beam: int
    num_sequences: int
    seq_length: int
    seed: int
    precision: str
    data_sha256: str


ByDepth = dict[str, ScoredLayers]  # by number of layers n, as a string


@dataclass(frozen=True)
class Search:
    """Layers by n, from one less than the reference has, down to the lowest so far.

    ``found`` are the best of each round; ``beam`` are the subsets that the next round removes a layer from. Those of
    ``compared``, by way, are chosen without search.
    """

    model: SearchedModel
    settings: SearchSettings
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


_WHERE = "give the --out_dir of a search of this reference"


def searched_shape(config: Config) -> dict[str, int]:
    """Returns sizes that a model shares with another one that its layers' numbers are used for."""
    names = "n_layer", "n_head", "n_query_groups", "n_embd", "intermediate_size", "padded_vocab_size"
    return {name: getattr(config, name) for name in names}


def load_search(folder: Path) -> Search:
    """Reads the result of a search from its folder; one that holds none, or is damaged, is a ``UserError``."""
    remedy = "give the --out_dir of `inheritune search`"
    if not (folder / SEARCH).is_file():
        raise UserError(f"{folder} does not hold a search of layers: {SEARCH} is not there; {remedy}")
    return read_record(folder / SEARCH, Search, "the result of a search", remedy)


@dataclass(frozen=True)
class SearchedLayers:
    """The layers that a search found for n, and what a slice records of it."""

    folder: Path
    search: Search
    layers: list[int]

    @classmethod
    def read(cls, folder: Path, n: int, config: Config) -> "SearchedLayers":
        """Reads them for a reference; a search that is of another shape, unfinished or has no n is a ``UserError``."""
        search = load_search(folder)
        depth, model = config.n_layer, search.model
        for name, size in searched_shape(config).items():
            if (other := model.shape.get(name)) != size:
                raise UserError(f"{folder} is a search of {model.name} with {name} {other}, not {size}; {_WHERE}")
        if not search.finished:
            remedy = "run the same `inheritune search` again, which continues it"
            raise UserError(
                f"{folder} holds a search that is not finished: {search.lowest} of {search.n_min}; {remedy}"
            )
        if n == depth or str(n) not in search.found:
            most = f"--n {n} is not one of the {search.lowest} to {depth - 1} layers that {folder} holds"
            raise UserError(f"{most}; give another --n, or continue the search with a smaller --n_min")
        return cls(folder, search, search.found[str(n)].layers)

    def check_files(self, files: list[dict[str, Any]], name: str) -> None:
        """Refuses a reference of this name whose files, as a manifest has them, are not those that were searched."""
        model = self.search.model
        hashes = {file["sha256"] for file in files}
        # Without hashes, because the user does not want files read for them, the name has to do.
        if not (name == model.name if None in hashes else hashes <= set(model.files.values())):
            raise UserError(f"{self.folder} is a search of {model.name} from {model.source}, not of {name}; {_WHERE}")

    def record(self) -> dict[str, Any]:
        """What the manifest of a slice says."""
        settings = asdict(self.search.settings)
        return {"folder": str(self.folder), "sha256": sha256_file(self.folder / SEARCH), "settings": settings}
