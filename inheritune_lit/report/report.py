"""``inheritune report``: one page of runs, evaluations and analyses."""

import sys
import time
from pathlib import Path

from inheritune_lit.errors import UserError
from inheritune_lit.io.folders import make_folder, replace_text
from inheritune_lit.report.figures import Curve
from inheritune_lit.report.figures import paper_curves as read_curves
from inheritune_lit.report.page import html_page, is_running, report_markdown
from inheritune_lit.report.runs import Material, collect

PAGE, TEXT = "report.html", "report.md"


def make_report(
    folders: list[Path], out_dir: Path, watch: int | None = None, paper_curves: list[str] | None = None
) -> Path:
    """Write ``report.html`` (all in one file), ``report.md`` and the figures as PNG.

    Args:
        folders: of runs, evaluations, analyses and growths, or folders that hold such.
        out_dir: where to write; an earlier report is replaced.
        watch: seconds between reports while a run goes on; None writes one.
        paper_curves: official runs to draw beside these, see ``paper_curves.paper_curves``.

    Returns:
        The page.

    Raises:
        UserError: nothing to report, or ``out_dir`` holds something else.
    """
    if watch is not None and watch < 1:
        raise UserError(f"--watch is {watch}; give seconds, 1 or more")
    official = read_curves(paper_curves or [])
    material = collect(folders)
    if out_dir.exists() and not (out_dir / TEXT).is_file() and (not out_dir.is_dir() or any(out_dir.iterdir())):
        raise UserError(f"{out_dir} holds something else than a report; give another --out_dir")
    make_folder(out_dir, out_dir)
    while True:
        if watch is None or not any(map(is_running, material.runs)):
            _write(material, official, out_dir, None)
            return out_dir / PAGE
        _write(material, official, out_dir, watch)
        print(f"{out_dir / PAGE}: {_state(material)}", file=sys.stderr, flush=True)
        time.sleep(watch)
        material = collect(folders)


def _state(material: Material) -> str:
    steps = {run.name: int(run.rows[-1]["step"]) if run.rows else 0 for run in material.runs if is_running(run)}
    return ", ".join(f"{name} at step {step:,}" for name, step in steps.items())


def _write(material: Material, official: dict[str, Curve], out_dir: Path, refresh_s: int | None) -> None:
    from inheritune_lit.report.figures import beside_paper, layer_map, loss_curves

    figures: dict[str, Path] = {}
    if any(run.validations for run in material.runs):
        figures["curves"] = out_dir / "loss.png"
        loss_curves([run for run in material.runs if run.validations], figures["curves"])
    if official:
        figures["paper"] = out_dir / "paper.png"
        beside_paper(material.runs, official, figures["paper"])
    for number, run in enumerate(material.runs):
        if run.slice is not None and run.slice["layers"] is not None:
            name = f"layers of {run.name}"
            figures[name] = out_dir / f"layers-{number}.png"
            layer_map(run.slice, figures[name])
    text = report_markdown(material, figures, out_dir)
    replace_text(out_dir / PAGE, html_page(text, out_dir, refresh_s))
    replace_text(out_dir / TEXT, text)
