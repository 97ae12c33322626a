"""Arguments of ``inheritune report``. Free of torch, so that help and errors are instant."""

from dataclasses import KW_ONLY, dataclass
from pathlib import Path

from inheritune_lit.errors import UserError
from inheritune_lit.io.arguments import CommandArgs


@dataclass(frozen=True)
class ReportArgs(CommandArgs):
    """Make one page of runs, evaluations and analyses: what was inherited, curves, scores, and how to do it again."""

    runs: list[Path]
    """Folders of runs, evaluations, analyses or growths, or folders that hold such."""
    _: KW_ONLY
    out_dir: Path = Path("report")
    """Report.html, all in one file, report.md, and the figures as PNG; an earlier report is replaced."""
    watch: int | None = None
    """Seconds between reports while a run is going on, one report when not given; the page then reloads itself."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.watch is not None and self.watch < 1:
            raise UserError(f"--watch is {self.watch}; give seconds, 1 or more")
