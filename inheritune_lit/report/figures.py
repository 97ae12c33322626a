"""Figures of a report: curves of its runs, and which layers were inherited."""

from collections.abc import Mapping
from pathlib import Path

from matplotlib.patches import Rectangle

from inheritune_lit import RunRecord
from inheritune_lit.io.plotting import COLOURS, draw_curve, engineering_ticks, label_ends, new_figure, save_png
from inheritune_lit.report.recorded import Inherited


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
