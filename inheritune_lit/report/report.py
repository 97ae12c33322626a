"""``inheritune report``: one page of runs, evaluations and analyses."""

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from inheritune_lit import RunRecord, read_run
from inheritune_lit.errors import UserError
from inheritune_lit.io.folders import check_vacant, is_leftover, own_folder, replace_text
from inheritune_lit.io.manifest import read_manifest, write_manifest
from inheritune_lit.report.args import ReportArgs
from inheritune_lit.report.figures import Curve, paper_curves
from inheritune_lit.report.page import PAGES, Page, html_page, report_markdown
from inheritune_lit.report.recorded import short_names

PAGE, TEXT, KIND = "report.html", "report.md", "report"
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
    official, out_dir, found = paper_curves(args.paper_curves or []), args.out_dir, collect(args.runs)
    _check_own(out_dir)
    with own_folder(out_dir):
        if read_manifest(out_dir) is None:
            write_manifest(out_dir, KIND, {})
        while args.watch and (running := {name: run for name, run in _runs(found).items() if run.final is None}):
            _write(found, official, out_dir, args.watch)
            steps = {name: int(run.rows[-1]["step"]) if run.rows else 0 for name, run in running.items()}
            words = ", ".join(f"{name} at step {step:,}" for name, step in steps.items())
            logger.info("%s: %s", out_dir / PAGE, words)
            time.sleep(args.watch)
            found = collect(args.runs)
        _write(found, official, out_dir, None)
    return ReportResult(out_dir / PAGE)


def _check_own(out_dir: Path) -> None:
    """Refuses a folder that holds something else; a report that was stopped before its end has its manifest."""
    if not out_dir.is_dir():
        check_vacant(out_dir)
    elif not (
        (out_dir / TEXT).is_file()
        or (read_manifest(out_dir) or {}).get("kind") == KIND
        or all(map(is_leftover, out_dir.iterdir()))
    ):
        raise UserError(f"{out_dir} holds something other than a report; give another --out_dir")


def collect(folders: list[Path]) -> list[RunRecord | Page]:
    """Reads folders of runs, evaluations, analyses and growths, and folders that hold such, in their order.

    Raises:
        UserError: a folder is missing, or holds nothing to report.
    """
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
    elif "Evaluation" in pages and (read_manifest(folder) or {}).get("kind") == "evaluation":
        yield pages["Evaluation"]
    elif "Analysis" in pages:
        yield pages["Analysis"]


def _read_inner(folder: Path) -> Iterator[RunRecord | Page]:
    for inner in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
        yield from _read(inner)


def _runs(found: list[RunRecord | Page]) -> dict[str, RunRecord]:
    """The runs by the names that the report gives them."""
    runs = [each for each in found if isinstance(each, RunRecord)]
    return dict(zip(short_names([run.folder for run in runs]), runs, strict=True))


def _write(found: list[RunRecord | Page], official: dict[str, Curve], out_dir: Path, refresh_s: int | None) -> None:
    pages = [each for each in found if isinstance(each, Page)]
    text = report_markdown(_runs(found), pages, official, out_dir)
    replace_text(out_dir / PAGE, html_page(text, out_dir, refresh_s, [page.folder for page in pages]))
    replace_text(out_dir / TEXT, text)
