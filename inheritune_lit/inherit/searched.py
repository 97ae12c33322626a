"""What a search of layers found, the content of ``search.json``, and a slice's layers from it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inheritune_lit.errors import UserError
from inheritune_lit.inherit.reference import ReferenceModel, ResolvedReference
from inheritune_lit.io.manifest import sha256_file
from inheritune_lit.io.records import read_record

SEARCH = "search.json"
_ANOTHER = "give the --out_dir of a search of this reference"


@dataclass(frozen=True)
class ScoredLayers:
    """Layers of the reference and their score in nats per token, with its standard error over the sequences."""

    layers: list[int]
    score: float
    stderr: float


@dataclass(frozen=True)
class SearchedModel:
    """The reference, with the SHA-256 of its files."""

    name: str
    source: str
    revision: str | None
    files: dict[str, str | None]
    shape: dict[str, int]

    @classmethod
    def of(cls, opened: ResolvedReference) -> "SearchedModel":
        """Describes an opened reference, whose files are read for it."""
        reference = opened.reference
        return cls(reference.name, opened.source, opened.revision, opened.file_hashes(), _shape(reference))


def _shape(reference: ReferenceModel) -> dict[str, int]:
    names = "n_layer", "n_head", "n_query_groups", "n_embd", "intermediate_size", "padded_vocab_size"
    return {name: getattr(reference.config, name) for name in names}


ByN = dict[str, ScoredLayers]  # by number of layers, from the most


@dataclass(frozen=True)
class Search:
    """The state of a search after a round."""

    model: SearchedModel
    settings: dict[str, Any]  # everything that changes what is found
    data: str  # its path
    sequences: list[list[int]]  # of tokens, with the one that follows each
    n_min: int  # where it is to end
    whole: ScoredLayers
    block_influence: list[float]  # of each layer
    found: ByN  # the best of each round
    beam: list[list[int]]  # what the next round removes a layer from
    compared: dict[str, ByN]  # by the way in which they were chosen, without search

    @property
    def lowest(self) -> int:
        """The lowest n that layers were found for, the reference's own before the first round."""
        return len(self.whole.layers) - len(self.found)

    @property
    def finished(self) -> bool:
        """Whether there are layers for every n that was asked for."""
        return self.lowest <= self.n_min


def load_search(folder: Path) -> Search:
    """Reads what a search has found so far from its folder; a ``UserError`` where there is none, or damage."""
    return read_record(folder / SEARCH, Search, "the result of `inheritune search`", "give the --out_dir of one")


def layers_for(search: Search, folder: Path, n: int, reference: ReferenceModel) -> list[int]:
    """Returns the n layers found; a search of another shape, unfinished, or without that n is a ``UserError``."""
    for name, size in _shape(reference).items():
        if (other := search.model.shape.get(name)) != size:
            problem = f"{folder} is a search of {search.model.name}, whose {name} is {other}, not {size}"
            raise UserError(f"{problem}; {_ANOTHER}")
    if not search.finished:
        problem = f"{folder} holds a search that is not finished: down to {search.lowest} of {search.n_min} layers"
        raise UserError(f"{problem}; the same `inheritune search` again continues it")
    if str(n) not in search.found:
        problem = f"--n {n} is not one of the {search.lowest} to {len(search.whole.layers) - 1} layers in {folder}"
        raise UserError(f"{problem}; give another --n, or continue the search with a smaller --n_min")
    return search.found[str(n)].layers


def search_record(search: Search, folder: Path, name: str, files: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns what the manifest of a slice says; other files than those that were searched are a ``UserError``.

    They belong to the reference of this name, and are as in a manifest. Without hashes the name has to do.
    """
    model, hashes = search.model, {file["sha256"] for file in files}
    if not (name == model.name if None in hashes else hashes <= set(model.files.values())):
        raise UserError(f"{folder} is a search of {model.name} from {model.source}, not of this {name}; {_ANOTHER}")
    return {"folder": str(folder), "sha256": sha256_file(folder / SEARCH), "settings": search.settings}
