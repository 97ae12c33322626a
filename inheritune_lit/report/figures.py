"""The official runs' validation losses, to be drawn beside one's own."""

import csv
import difflib
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter

from inheritune_lit.errors import UserError
from inheritune_lit.report.runs import Run
from inheritune_lit.resources import suites_dir

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


matplotlib.use("Agg")


_DPI = 130


def loss_curves(runs: list[Run], path: Path) -> None:
    """Held-out loss against tokens, FLOPs and hours of training, with standard errors."""
    figure, panels = plt.subplots(1, 3, figsize=(13, 4), sharey=True, constrained_layout=True)
    for run in runs:
        rows = run.validations
        losses = [row["val_loss"] for row in rows]
        stderrs = [row.get("val_stderr", 0.0) for row in rows]
        tokens = [row["tokens"] for row in rows]
        scales = {
            "tokens": tokens,
            "FLOPs": [count * run.flops_per_token for count in tokens] if run.flops_per_token else None,
            "hours": [row.get("seconds", 0.0) / 3600 for row in rows],
        }
        for axes, values in zip(panels, scales.values(), strict=True):
            # Empty curves take their turn in the colours, so that a run has the same in all panels.
            known = values is not None
            axes.errorbar(
                values if known else [],
                losses if known else [],
                yerr=stderrs if known else [],
                marker="o",
                markersize=3,
                capsize=2,
                label=run.name,
            )
    for axes, unit in zip(panels, ("tokens trained", "FLOPs", "hours of training"), strict=True):
        axes.set(xlabel=unit)
        axes.grid(alpha=0.3)
        if unit != "hours of training":  # of which there may be a hundredth
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    panels[0].set_ylabel("held-out loss (nats a token)")
    panels[0].legend(fontsize="small")
    figure.savefig(path, dpi=_DPI)
    plt.close(figure)


def beside_paper(runs: list[Run], official: dict[str, Curve], path: Path) -> None:
    """Held-out loss against optimizer steps, with the official runs' dashed."""
    figure, axes = plt.subplots(figsize=(8, 4.5), constrained_layout=True)
    for name, curve in official.items():
        steps, losses = zip(*curve, strict=True)
        axes.plot(steps, losses, linestyle="--", linewidth=1, label=f"{name} (official log, not re-run)")
    for run in runs:
        axes.plot(
            [row["step"] for row in run.validations],
            [row["val_loss"] for row in run.validations],
            marker="o",
            markersize=3,
            label=run.name,
        )
    axes.set(xlabel="optimizer steps", ylabel="validation loss (nats a token)")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=_DPI)
    plt.close(figure)


def layer_map(manifest: dict[str, Any], path: Path) -> None:
    """Which layer of the reference each layer of a slice comes from.

    Args:
        manifest: of the slice.
        path: of the PNG.
    """
    depth, layers = manifest["reference"]["n_layer"], manifest["layers"]
    count = manifest["n_layer"]
    figure, axes = plt.subplots(figsize=(min(13, 2 + 0.3 * max(depth, count)), 2.6), constrained_layout=True)
    taken = set(layers or [])
    inherited = {part: manifest.get(part, False) for part in ("embeddings", "final_norm", "head")}
    _row(axes, 1.0, [str(layer) for layer in range(depth)], [layer in taken for layer in range(depth)], inherited)
    _row(axes, 0.0, [str(layer) for layer in range(count)], [layers is not None] * count, inherited)
    for number, layer in enumerate(layers or []):
        axes.annotate(
            "", (number, 0.28), (layer, 0.72), arrowprops={"arrowstyle": "-|>", "color": "tab:blue", "alpha": 0.6}
        )
    axes.set_yticks([0, 1], ["slice", "reference"])
    axes.set_xticks([])
    axes.set(xlim=(-2.2, max(depth, count) + 1.6), ylim=(-0.4, 1.4))
    for side in axes.spines.values():
        side.set_visible(False)
    figure.savefig(path, dpi=_DPI)
    plt.close(figure)


def _row(axes: Axes, height: float, names: list[str], taken: list[bool], inherited: dict[str, bool]) -> None:
    """A model as boxes from its embeddings to its head; what is inherited is blue."""
    boxes = [(-1.4, "emb", inherited["embeddings"])]
    boxes += [(float(number), name, is_taken) for number, (name, is_taken) in enumerate(zip(names, taken, strict=True))]
    end = len(names)
    boxes += [(end + 0.1, "norm", inherited["final_norm"]), (end + 1.1, "head", inherited["head"])]
    for centre, name, is_taken in boxes:
        wide = 0.5 if name == "emb" else 0.42
        colour = "tab:blue" if is_taken else "lightgray"
        axes.add_patch(plt.Rectangle((centre - wide, height - 0.22), 2 * wide, 0.44, color=colour, alpha=0.75))
        axes.text(centre, height, name, ha="center", va="center", fontsize=7, color="white" if is_taken else "black")
