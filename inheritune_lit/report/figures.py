"""Figures of a report: curves of its runs, the official runs beside them, and which layers were inherited."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.patches import Rectangle

from inheritune_lit import RunRecord
from inheritune_lit.errors import UserError, suggest
from inheritune_lit.io.plotting import COLOURS, draw_curve, engineering_ticks, label_ends, new_figure, save_png
from inheritune_lit.report.recorded import Inherited
from inheritune_lit.resources import suites_dir

Curve = list[tuple[int, float]]


def paper_curves(names: Sequence[str]) -> dict[str, Curve]:
    """Returns steps and losses of official runs (``eval/paper/curves.csv``) by their names, such as ``medium_log``: the
    last part of their path, or as much of it as tells them apart. No such run, or several, are a ``UserError``.
    """
    curves: dict[str, Curve] = {}
    with (suites_dir() / "paper" / "curves.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            curves.setdefault(row["run"], []).append((int(row["step"]), float(row["val_loss"])))
    found: dict[str, Curve] = {}
    for name in names:
        runs = [run for run in curves if f"/{run}".endswith(f"/{name}")]
        if len(runs) > 1:
            raise UserError(f"--paper_curves {name} names several runs: {', '.join(runs)}; give more of the path")
        if not runs:
            short = sorted({run.rpartition("/")[2] for run in curves})
            hint = suggest(name, short, f"give one of {', '.join(short)}", most=3, cutoff=0.4)
            raise UserError(f"--paper_curves {name} is not an official run; {hint}")
        found[name] = curves[runs[0]]
    return found


def draw_loss_curves(runs: Mapping[str, RunRecord], path: Path) -> None:
    """Draws held-out loss against tokens, FLOPs and hours of training, with standard errors."""
    figure, panels = new_figure(3, size=(4.6, 4), sharey=True)
    for number, (name, run) in enumerate(runs.items()):
        rows, per_token = run.validations, run.flops_per_token
        tokens, seconds, stderrs = ([row.get(key, 0.0) for row in rows] for key in ("tokens", "seconds", "val_stderr"))
        losses, scales = [row["val_loss"] for row in rows], (1, per_token, 1 / 3600)
        for axes, counts, scale in zip(panels, (tokens, tokens, seconds), scales, strict=True):
            if scale is not None:
                draw_curve(axes, number, [count * scale for count in counts], losses, name, stderrs)
    for axes, unit in zip(panels, ("tokens trained", "FLOPs", "hours of training"), strict=True):
        axes.set_xlabel(unit)
        axes.locator_params(axis="x", nbins=5)
        if unit != "hours of training":  # of which there may be a hundredth
            engineering_ticks(axes.xaxis)
    panels[0].set_ylabel("held-out loss (nats per token)")
    label_ends(panels[-1])
    save_png(figure, path)


def draw_beside_paper(runs: Mapping[str, RunRecord], official: dict[str, Curve], path: Path) -> None:
    """Draws held-out loss against optimizer steps, with the official runs' dashed."""
    figure, (axes,) = new_figure(size=(7.5, 4.5))
    for number, (name, run) in enumerate(runs.items()):
        steps, losses = ([row[column] for row in run.validations] for column in ("step", "val_loss"))
        draw_curve(axes, number, steps, losses, name)
    for number, (name, curve) in enumerate(official.items(), start=len(runs)):
        label = f"{name} (official log, not re-run)"
        steps, losses = ([point[axis] for point in curve] for axis in (0, 1))
        draw_curve(axes, number, steps, losses, label, linestyle="--", marker="", linewidth=1)
    axes.set(xlabel="optimizer steps", ylabel="validation loss (nats per token)")
    engineering_ticks(axes.xaxis)
    label_ends(axes)
    save_png(figure, path)


def draw_layer_map(slice: Inherited, path: Path) -> None:
    """Draws a slice and its reference as rows of boxes, which layer comes from which, and what is inherited in blue."""
    depth, layers, count = slice.reference.n_layer, slice.layers or [], slice.n_layer
    figure, (axes,) = new_figure(size=(min(13, 2 + 0.3 * max(depth, count)), 2.6))
    for height, taken in ((1.0, [layer in layers for layer in range(depth)]), (0.0, [True] * count)):
        boxes = [(-1.4, "emb", slice.embeddings), *((place, str(place), each) for place, each in enumerate(taken))]
        boxes += [(len(taken) + 0.1, "norm", slice.final_norm), (len(taken) + 1.1, "head", slice.head)]
        for centre, name, inherited in boxes:
            half, colour = 0.5 if name == "emb" else 0.42, COLOURS[0] if inherited else "lightgray"
            axes.add_patch(Rectangle((centre - half, height - 0.22), 2 * half, 0.44, color=colour, alpha=0.75))
            ink = "white" if inherited else "black"
            axes.text(centre, height, name, ha="center", va="center", fontsize=7, color=ink)
    for number, layer in enumerate(layers):
        arrow = {"arrowstyle": "-|>", "color": COLOURS[0], "alpha": 0.6}
        axes.annotate("", (number, 0.28), (layer, 0.72), arrowprops=arrow)
    axes.set_yticks([0, 1], ["slice", "reference"])
    axes.set_xticks([])
    axes.set(xlim=(-2.2, max(depth, count) + 1.6), ylim=(-0.4, 1.4))
    axes.grid(False)
    axes.spines[:].set_visible(False)
    save_png(figure, path)
