"""What a report reads: runs, pages of other commands, and the slices behind runs, which others may have damaged."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inheritune_lit import RunRecord, read_run
from inheritune_lit.errors import UserError, printable
from inheritune_lit.io.manifest import read_manifest
from inheritune_lit.io.records import to_record

PAGES = {"Growing": "grow.md", "Evaluation": "results.md", "Analysis": "analysis.md"}
"""Pages that other commands leave in their folders, by their kinds in the order of the report."""
_REMEDY = "restore it, or leave the folder out"


@dataclass(frozen=True)
class Page:
    """The Markdown page that another command has left in its folder, with the figures beside it."""

    kind: str
    folder: Path


def collect(folders: list[Path]) -> list[RunRecord | Page]:
    """Reads folders of runs, evaluations, analyses and growths, or that hold such; one without is a ``UserError``."""
    found: list[RunRecord | Page] = []
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"no folder at {folder}; give folders of runs, evaluations or analyses")
        own = list(_read(folder)) or list(_read_inner(folder))
        if not own:
            raise UserError(f"{folder} holds no run, evaluation or analysis, nor do the folders in it; check the path")
        found += own
    return list({each.folder.resolve(): each for each in found}.values())  # each once, however often it is given


def _read(folder: Path) -> Iterator[RunRecord | Page]:
    pages = {kind: Page(kind, folder) for kind, file in PAGES.items() if (folder / file).is_file()}
    if "Growing" in pages:
        yield pages["Growing"]
        yield from _read_inner(folder)
    elif run := read_run(folder):
        yield run
        if (folder / "scores" / PAGES["Evaluation"]).is_file():
            yield Page("Evaluation", folder / "scores")
    elif "Evaluation" in pages and read_manifest(folder, "evaluation"):
        yield pages["Evaluation"]
    elif "Analysis" in pages:
        yield pages["Analysis"]


def _read_inner(folder: Path) -> Iterator[RunRecord | Page]:
    for inner in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
        yield from _read(inner)


@dataclass(frozen=True)
class _Reference:
    source: str
    name: str
    n_layer: int
    files: list[dict[str, Any]] | None = None


@dataclass(frozen=True)
class Inherited:
    """The slice that a run goes back to; ``layers`` is None for fresh weights."""

    reference: _Reference
    n_layer: int
    layers: list[int] | None
    parameters: dict[str, int]
    seed: int
    init: str = "inherit"
    parts: list[str] | None = None
    embeddings: bool = False
    final_norm: bool = False
    head: bool = False


def read_inherited(run: RunRecord) -> Inherited | None:
    """Returns the slice that a run goes back to, None where that is gone; a damaged manifest is a ``UserError``."""
    if run.slice is None:
        return None
    slice = to_record(run.slice, Inherited, run.folder, "a run that goes back to a slice", _REMEDY, others=True)
    layers, depth = slice.layers, slice.reference.n_layer
    if layers is not None and (len(layers) != slice.n_layer or not all(0 <= layer < depth for layer in layers)):
        raise UserError(f"{run.folder} goes back to a slice of {depth} layers with layers {layers}; {_REMEDY}")
    return slice


def short_names(folders: Sequence[Path]) -> dict[Path, str]:
    """Returns the last part of each path, or as many as tell it from the others."""
    paths = {folder: folder.resolve().parts for folder in folders}
    names = {}
    for folder, own in paths.items():
        counts = range(1, len(own))
        count = next((n for n in counts if sum(path[-n:] == own[-n:] for path in paths.values()) == 1), len(own))
        names[folder] = printable("/".join(own[-count:]))
    return names
