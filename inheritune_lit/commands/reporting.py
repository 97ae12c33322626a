"""``inheritune report``."""

from pathlib import Path


def report_command(
    runs: list[Path],
    out_dir: Path = Path("report"),
    watch: int | None = None,
    paper_curves: list[str] | None = None,
) -> None:
    """Make one page of runs, evaluations and analyses: what was inherited, curves, scores, and how to do it again.

    Args:
        runs: folders of runs, evaluations, analyses or growths, or folders that hold such.
        out_dir: report.html, all in one file, report.md, and the figures as PNG; an earlier report is replaced.
        watch: write it again every so many seconds while a run goes on; the page then reloads itself.
        paper_curves: official GPT-2 runs to draw beside these, such as medium_log and medium-init_ly.
    """
    from inheritune_lit.report.args import ReportArgs
    from inheritune_lit.report.report import make_report

    print(make_report(ReportArgs(runs, out_dir=out_dir, watch=watch, paper_curves=paper_curves)))
