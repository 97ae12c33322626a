"""Folders that a report is about, read from disk; a run that still goes on is read as far as it is."""

from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from inheritune_lit.checkpoint.config import load_lit_config
from inheritune_lit.checkpoint.folder import is_litgpt_folder
from inheritune_lit.errors import UserError
from inheritune_lit.io.manifest import read_manifest
from inheritune_lit.model.flops import flops_per_token
from inheritune_lit.train.metrics import METRICS, read_metrics
from inheritune_lit.train.run_folder import FINAL

EVALUATION, ANALYSIS, GROWTH = "results.md", "analysis.md", "grow.md"
"""Pages that other commands leave in their folders."""


@dataclass(frozen=True)
class Run:
    """A run of ``inheritune pretrain``.

    Attributes:
        name: its folder's.
        manifest: of the run folder.
        rows: of ``metrics.csv``; columns that were not measured at a step are left out.
        final: manifest of the trained checkpoint, None while there is none.
        parent: manifest of the checkpoint it started from, None where that is gone.
        flops_per_token: None where no checkpoint tells the shape.
    """

    name: str
    folder: Path
    manifest: dict[str, Any]
    rows: list[dict[str, float]]
    final: dict[str, Any] | None
    parent: dict[str, Any] | None
    flops_per_token: float | None

    @property
    def settings(self) -> dict[str, Any]:
        return self.manifest["settings"]

    @property
    def validations(self) -> list[dict[str, float]]:
        """Rows with a held-out loss."""
        return [row for row in self.rows if "val_loss" in row]

    @property
    def slice(self) -> dict[str, Any] | None:
        """Manifest of the slice that it goes back to, over any number of runs."""
        manifest = self.parent
        while manifest is not None and manifest.get("kind") != "slice":
            manifest = manifest.get("parent")
        return manifest

    def typical(self, column: str) -> float | None:
        """Median of a column, None where it was never measured."""
        values = [row[column] for row in self.rows if column in row]
        return median(values) if values else None

    def largest(self, column: str) -> float | None:
        """Greatest value of a column, None where it was never measured."""
        return max((row[column] for row in self.rows if column in row), default=None)


@dataclass(frozen=True)
class Page:
    """A folder of another command: its Markdown page and the figures beside it."""

    name: str
    folder: Path
    markdown: Path
    figures: list[Path]


@dataclass(frozen=True)
class Material:
    """All that a report is made of, in the order it was named."""

    runs: list[Run]
    growths: list[Page]
    evaluations: list[Page]
    analyses: list[Page]


def collect(folders: list[Path]) -> Material:
    """Read folders: runs, evaluations, analyses, growths, and folders that hold such.

    Raises:
        UserError: a folder is missing, or holds nothing to report.
    """
    material = Material([], [], [], [])
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"no folder at {folder}; give folders of runs, evaluations or analyses")
        before = _count(material)
        _add(folder, material)
        if _count(material) == before:
            for inner in sorted(path for path in folder.iterdir() if path.is_dir()):
                _add(inner, material)
        if _count(material) == before:
            raise UserError(f"{folder} holds no run, evaluation or analysis, nor do the folders in it; check the path")
    return material


def _count(material: Material) -> int:
    return len(material.runs) + len(material.growths) + len(material.evaluations) + len(material.analyses)


def _add(folder: Path, material: Material) -> None:
    manifest = read_manifest(folder)
    if (folder / GROWTH).is_file():
        material.growths.append(_page(folder, GROWTH))
        for inner in sorted(path for path in folder.iterdir() if path.is_dir()):
            _add(inner, material)
    elif manifest is not None and manifest.get("kind") == "run":
        material.runs.append(_run(folder, manifest))
        if (folder / "scores" / EVALUATION).is_file():
            material.evaluations.append(_page(folder / "scores", EVALUATION))
    elif manifest is not None and manifest.get("kind") == "evaluation" and (folder / EVALUATION).is_file():
        material.evaluations.append(_page(folder, EVALUATION))
    elif (folder / ANALYSIS).is_file():
        material.analyses.append(_page(folder, ANALYSIS))


def _page(folder: Path, markdown: str) -> Page:
    return Page(folder.name, folder, folder / markdown, sorted(folder.glob("*.png")))


def _run(folder: Path, manifest: dict[str, Any]) -> Run:
    table = read_metrics(folder / METRICS)
    try:
        rows = [{column: float(value) for column, value in row.items() if value} for row in table]
    except ValueError as error:
        raise UserError(f"{folder / METRICS} is damaged ({error}); restore it, or leave the folder out") from error
    final = read_manifest(folder / FINAL)
    initial = Path(manifest["settings"]["initial_checkpoint_dir"])
    parent = final.get("parent") if final else read_manifest(initial)
    shape = next((path for path in (folder / FINAL, initial) if is_litgpt_folder(path)), None)
    flops = None
    if shape is not None:
        config = load_lit_config(shape)
        flops = flops_per_token(config, manifest["settings"]["train"].get("max_seq_length") or config.block_size)
    return Run(folder.resolve().name, folder, manifest, rows, final, parent, flops)
