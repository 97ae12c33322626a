"""The official runs' validation losses, to be drawn beside one's own."""

import csv
import difflib

from inheritune_lit.errors import UserError
from inheritune_lit.shipped import suites_dir

Curve = list[tuple[int, float]]


def paper_curves(names: list[str]) -> dict[str, Curve]:
    """Steps and losses of official runs (``eval/paper/curves.csv``).

    Args:
        names: of runs, such as ``medium_log``: the last part of their path, or as much of it as tells them apart.

    Raises:
        UserError: no such run, or several.
    """
    curves: dict[str, Curve] = {}
    with (suites_dir() / "paper" / "curves.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            curves.setdefault(row["run"], []).append((int(row["step"]), float(row["val_loss"])))
    return {name: curves[_find(name, list(curves))] for name in names}


def _find(name: str, runs: list[str]) -> str:
    found = [run for run in runs if f"/{run}".endswith(f"/{name}")]
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(f"--paper_curves {name} are several: {', '.join(found)}; give more of the path")
    short = {run.rpartition("/")[2]: run for run in runs}
    near = difflib.get_close_matches(name, short, n=3, cutoff=0.4) or sorted(short)
    raise UserError(f"--paper_curves {name} is no official run; give one of {', '.join(near)}")
