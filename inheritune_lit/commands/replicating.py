"""``inheritune reproduce``."""

from pathlib import Path
from typing import Literal


def reproduce_command(
    source: list[Path],
    out_dir: Path = Path("runs/replication"),
    scale: Literal["small", "long", "tiny"] = "small",
    seeds: int = 3,
    baseline_seeds: int = 1,
    only: list[str] | None = None,
    dry_run: bool = False,
) -> None:
    """Train the paper's comparisons at a size that runs here: Tables 1 to 3, distillation, which layers to begin with.

    The same command again continues; models that are done are kept. Ends with replication.md and its figures.

    Args:
        source: text: folders or files that ``inheritune prepare`` reads, each a domain where there are several.
        out_dir: folder for everything.
        scale: "small" is for an hour on a CPU; "long" trains models half as wide for 13 times the steps; "tiny" shows
            that it runs.
        seeds: trainings of each model of the main comparison (Table 1), with other weights and another order.
        baseline_seeds: the same for the other models.
        only: train just these models of the grid, and those that they begin with.
        dry_run: say what will be trained and stop.
    """
    from inheritune_lit.studies.replication import reproduce as run

    run(source, out_dir, scale, seeds, baseline_seeds, only, dry_run)
