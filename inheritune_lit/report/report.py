"""``inheritune report``: one page of runs, evaluations and analyses."""

import logging
import time
from dataclasses import dataclass, field, fields
from pathlib import Path

from inheritune_lit import RunRecord, read_run
from inheritune_lit.errors import UserError
from inheritune_lit.io.folders import make_folder, replace_text
from inheritune_lit.io.manifest import read_manifest
from inheritune_lit.report.args import ReportArgs
from inheritune_lit.report.figures import Curve, draw_beside_paper, draw_layer_map, draw_loss_curves, paper_curves
from inheritune_lit.report.page import Page, ReportInputs, html_page, report_markdown

PAGE, TEXT = "report.html", "report.md"
EVALUATION, ANALYSIS, GROWTH = "results.md", "analysis.md", "grow.md"
"""Pages that other commands leave in their folders."""
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReportResult:
    """The page that was written."""

    page: Path

    def __str__(self) -> str:
        return f"wrote {self.page}"


def make_report(args: ReportArgs) -> ReportResult:
    """Writes ``report.html`` (all in one file), ``report.md`` and the figures as PNG.

    Raises:
        UserError: nothing to report, or ``out_dir`` holds something else.
    """
    official = paper_curves(args.paper_curves or [])
    inputs, out_dir = collect(args.runs), args.out_dir
    if out_dir.exists() and not (out_dir / TEXT).is_file() and (not out_dir.is_dir() or any(out_dir.iterdir())):
        raise UserError(f"{out_dir} holds something other than a report; give another --out_dir")
    make_folder(out_dir, out_dir)
    while args.watch is not None and (running := [run for run in inputs.runs if run.final is None]):
        _write(inputs, official, out_dir, args.watch)
        steps = (f"{run.name} at step {int(run.rows[-1]['step']) if run.rows else 0:,}" for run in running)
        logger.info("%s: %s", out_dir / PAGE, ", ".join(steps))
        time.sleep(args.watch)
        inputs = collect(args.runs)
    _write(inputs, official, out_dir, None)
    return ReportResult(out_dir / PAGE)


def collect(folders: list[Path]) -> ReportInputs:
    """Reads folders of runs, evaluations, analyses and growths, and folders that hold such.

    Raises:
        UserError: a folder is missing, or holds nothing to report.
    """
    found = _Collected()
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"no folder at {folder}; give folders of runs, evaluations or analyses")
        before = found.count
        found.add(folder)
        if found.count == before:
            found.add_inner(folder)
        if found.count == before:
            raise UserError(f"{folder} holds no run, evaluation or analysis, nor do the folders in it; check the path")
    return ReportInputs(**vars(found))


@dataclass
class _Collected:
    """``ReportInputs`` while they are read."""

    runs: list[RunRecord] = field(default_factory=list)
    growths: list[Page] = field(default_factory=list)
    evaluations: list[Page] = field(default_factory=list)
    analyses: list[Page] = field(default_factory=list)

    @property
    def count(self) -> int:
        return sum(len(getattr(self, each.name)) for each in fields(self))

    def add(self, folder: Path) -> None:
        """Takes up a folder, if it is one of those that a report is about."""
        if (folder / GROWTH).is_file():
            self.growths.append(Page(folder, GROWTH))
            self.add_inner(folder)
        elif run := read_run(folder):
            self.runs.append(run)
            if (folder / "scores" / EVALUATION).is_file():
                self.evaluations.append(Page(folder / "scores", EVALUATION))
        elif (read_manifest(folder) or {}).get("kind") == "evaluation" and (folder / EVALUATION).is_file():
            self.evaluations.append(Page(folder, EVALUATION))
        elif (folder / ANALYSIS).is_file():
            self.analyses.append(Page(folder, ANALYSIS))

    def add_inner(self, folder: Path) -> None:
        """Takes up the folders in a folder."""
        for inner in sorted(path for path in folder.iterdir() if path.is_dir()):
            self.add(inner)


def _write(inputs: ReportInputs, official: dict[str, Curve], out_dir: Path, refresh_s: int | None) -> None:
    figures: dict[str, Path] = {}
    if any(run.validations for run in inputs.runs):
        figures["curves"] = out_dir / "loss.png"
        draw_loss_curves([run for run in inputs.runs if run.validations], figures["curves"])
    if official:
        figures["paper"] = out_dir / "paper.png"
        draw_beside_paper(inputs.runs, official, figures["paper"])
    for number, run in enumerate(inputs.runs):
        if run.slice is not None and run.slice["layers"] is not None:
            figures[f"layers of {run.name}"] = out_dir / f"layers-{number}.png"
            draw_layer_map(run.slice, out_dir / f"layers-{number}.png")
    text = report_markdown(inputs, figures, out_dir)
    replace_text(out_dir / PAGE, html_page(text, out_dir, refresh_s))
    replace_text(out_dir / TEXT, text)
