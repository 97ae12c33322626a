"""Measures drawn against the layer."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from inheritune_lit.analysis.page import title
from inheritune_lit.analysis.result import Analysis

COLOURS = ("tab:blue", "tab:orange")
_LAZY = "0.88"
_FAR = 50


def rank_and_mass_figure(analyses: Sequence[Analysis]) -> Figure:
    """Max rank and max mass against the layer with their standard deviation: Figures 1 and 9 of the paper.

    One row of panels a measure, one column a model; a model's lazy layers are grey.
    """
    figure = Figure(figsize=(7.2 * len(analyses), 6.6), layout="constrained")
    panels = figure.subplots(2, len(analyses), squeeze=False, sharey="row")
    for column, analysis in enumerate(analyses):
        v2, v4 = analysis.protocols["v2"], analysis.protocols["v4"]
        layers = np.arange(analysis.model["n_layer"])
        for row, measure in enumerate(("rank", "mass")):
            axes = panels[row, column]
            _shade(axes, analysis)
            mean, std = (np.array(v2[f"max_{measure}"][key]) for key in ("mean", "std"))
            _band(axes, layers, mean, std, COLOURS[column], "max over heads, mean ± std over sequences (v2)")
            axes.plot(layers, v4[f"max_{measure}"], color="black", lw=1, ls="--", label="max of the heads' means (v4)")
            axes.plot(layers, v4[f"avg_{measure}"], color="0.45", lw=1, ls=":", label="mean of the heads' means (v4)")
            axes.set_ylabel(f"attention {measure}, of {analysis.settings['seq_length']}")
            _layer_axis(axes, len(layers))
            if row == 0:
                axes.set_title(_name(analysis))
    for axes in panels[:, 0]:  # once all models are in: setting a limit ends the automatic choice of the other
        axes.set_ylim(bottom=0)
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", fontsize="small")
    return figure


def depth_figure(analyses: Sequence[Analysis]) -> Figure | None:
    """Block influence, output variance, losses and gradient norms against depth; several models in one panel."""
    names = list(dict.fromkeys(name for analysis in analyses for name in analysis.layers))
    if not names:
        return None
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(5 * columns, 3.6 * rows + 0.4), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, name in zip(panels, names, strict=False):
        for analysis, colour in zip(analyses, COLOURS, strict=False):
            if name not in analysis.layers:
                continue
            mean, std = (np.array(analysis.layers[name][key]) for key in ("mean", "std"))
            _band(axes, np.arange(len(mean)), mean, std, colour, analysis.model["name"])
        unit = next(analysis.measures.get(name, {}).get("unit", "") for analysis in analyses if name in analysis.layers)
        axes.set(title=title(name), ylabel=unit)
        # The lens has one value more: after none, one, ... of the layers.
        lens = name == "logit_lens_loss"
        _layer_axis(axes, len(axes.lines[0].get_xdata()), "layers kept, from the first" if lens else "layer")
        if len(analyses) == 1 and not lens:
            _shade(axes, analyses[0])
        if _spans_decades(axes):
            axes.set_yscale("log")
    for axes in panels[len(names) :]:
        axes.set_axis_off()
    if len(analyses) > 1:
        panels[0].legend(fontsize="small")
    figure.suptitle(" and ".join(_name(analysis) for analysis in analyses))
    return figure


def _spans_decades(axes: Axes) -> bool:
    """Whether the curves are positive and their largest value is far above their smallest."""
    values = np.concatenate([line.get_ydata() for line in axes.lines])
    values = values[np.isfinite(values)]
    return values.size > 0 and values.min() > 0 and values.max() > _FAR * values.min()


def _name(analysis: Analysis) -> str:
    lazy = len(analysis.lazy["layers"])
    return (
        f"{analysis.model['name']}: {analysis.model['n_layer']} layers, {lazy} lazy ({analysis.settings['protocol']})"
    )


def _band(axes: Axes, x: np.ndarray, mean: np.ndarray, std: np.ndarray, colour: str, label: str) -> None:
    axes.plot(x, mean, color=colour, marker="o", ms=3, lw=1.5, label=label)
    axes.fill_between(x, mean - std, mean + std, color=colour, alpha=0.2, lw=0)


def _shade(axes: Axes, analysis: Analysis) -> None:
    for layer in analysis.lazy["layers"]:
        axes.axvspan(layer - 0.5, layer + 0.5, color=_LAZY, lw=0, zorder=0)


def _layer_axis(axes: Axes, count: int, label: str = "layer") -> None:
    axes.set(xlabel=label, xlim=(-0.6, count - 0.4))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=12, integer=True, min_n_ticks=1))
    axes.grid(axis="y", color="0.9", lw=0.6)


# Between a rank of 1 and one of 2 lies more than between 50 and 51.
_ON_A_LOG_SCALE = ("attention_rank", "attention_mass", "head_output_norm")
_MOST_IN_A_ROW = 16


def attention_figure(analyses: Sequence[Analysis]) -> Figure | None:
    """Attention matrices of chosen layers and heads, darker where more is attended: Figure 2 of the paper.

    A layer's heads stand in one row, or several where they are many; the second model stands below the first. None
    where no maps were asked for.
    """
    grids = [_grid(analysis) for analysis in analyses if analysis.maps.get("attention")]
    if not grids:
        return None
    shown = [analysis for analysis in analyses if analysis.maps.get("attention")]
    columns = max(len(row) for grid in grids for row in grid)
    heights = [len(grid) for grid in grids]
    side = float(np.clip(20 / columns, 0.7, 1.9))
    figure = Figure(
        figsize=(max(6, side * columns + 0.3), (side + 0.2) * sum(heights) + 0.6 * len(grids)), layout="constrained"
    )
    parts = figure.subfigures(len(grids), 1, height_ratios=heights, squeeze=False).ravel()
    for part, grid, analysis in zip(parts, grids, shown, strict=True):
        maps = analysis.maps
        part.suptitle(
            f"{analysis.model['name']}: {maps['kind']} attention, mean of {maps['strings']} strings "
            f"of {maps['tokens']} tokens (square root)",
            fontsize="medium",
        )
        panels = part.subplots(len(grid), columns, squeeze=False)
        for axes in panels.ravel():
            axes.set_axis_off()
        for row, row_panels in zip(grid, panels, strict=True):
            for one, axes in zip(row, row_panels, strict=False):
                # The square root shows the weak weights beside a sink.
                axes.imshow(np.sqrt(one["weights"]), cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
                axes.set_title(f"L{one['layer']} H{one['head']}", fontsize="small", pad=3)
                axes.set_axis_on()
                axes.set(xticks=[], yticks=[])
    return figure


def heads_figure(analysis: Analysis) -> Figure | None:
    """Every measure of heads as an image, head against layer."""
    names = list(analysis.heads)
    if not names:
        return None
    depth, heads = analysis.model["n_layer"], analysis.model["n_head"]
    columns = min(2, len(names))
    rows = -(-len(names) // columns)
    width, height = float(np.clip(0.22 * depth + 1.8, 4.5, 10)), float(np.clip(0.16 * heads + 1.2, 2.4, 6))
    figure = Figure(figsize=(columns * width, rows * height + 0.4), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels[len(names) :]:
        axes.set_axis_off()
    for axes, name in zip(panels, names, strict=False):
        values_LH = np.array(analysis.heads[name]["mean"], dtype=float)
        _image(axes, values_LH.T, name in _ON_A_LOG_SCALE)
        axes.set(title=_with_unit(analysis, name), xlabel="layer", ylabel="head")
    figure.suptitle(f"{analysis.model['name']}: {depth} layers of {heads} heads, means over sequences")
    return figure


def spans_figure(analysis: Analysis) -> Figure | None:
    """Measures of spans as images: length of the span against its first layer. None where all are single layers."""
    names = [name for name, lengths in analysis.spans.items() if len(lengths) > 1]
    if not names:
        return None
    depth = analysis.model["n_layer"]
    side = float(np.clip(0.2 * depth + 2, 4.5, 9))
    figure = Figure(figsize=(side * len(names), 0.85 * side), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False).ravel(), names, strict=True):
        spans = {int(length): values for length, values in analysis.spans[name].items()}
        values_NL = np.full((max(spans), depth), np.nan)
        for length, values in spans.items():
            values_NL[length - 1, : len(values)] = values
        _image(axes, values_NL, False, first_row=1)
        axes.set(title=_with_unit(analysis, name), xlabel="first layer of the span", ylabel="layers in the span")
        axes.invert_yaxis()
    figure.suptitle(f"{analysis.model['name']}: spans of layers")
    return figure


def _grid(analysis: Analysis) -> list[list[dict]]:
    """The maps by layer, in the order they have; those of many heads take several rows of about the same length."""
    rows: dict[int, list[dict]] = {}
    for one in analysis.maps["attention"]:
        rows.setdefault(one["layer"], []).append(one)
    grid = []
    for row in rows.values():
        length = -(-len(row) // -(-len(row) // _MOST_IN_A_ROW))
        grid += [row[start : start + length] for start in range(0, len(row), length)]
    return grid


def _image(axes: Axes, values: np.ndarray, log: bool, first_row: int = 0) -> None:
    finite = values[np.isfinite(values)]
    norm = LogNorm(finite.min(), finite.max()) if log and finite.size and 0 < finite.min() < finite.max() else None
    rows, columns = values.shape
    edges = (-0.5, columns - 0.5, first_row + rows - 0.5, first_row - 0.5)
    image = axes.imshow(values, aspect="auto", norm=norm, extent=edges, interpolation="nearest", cmap="viridis")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=12, integer=True, min_n_ticks=1))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
    bar = axes.figure.colorbar(image, ax=axes, pad=0.02)
    if norm is not None:
        bar.ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        bar.ax.yaxis.set_major_formatter("{x:g}")
        bar.ax.yaxis.set_minor_formatter(NullFormatter())


def _with_unit(analysis: Analysis, name: str) -> str:
    unit = analysis.measures.get(name, {}).get("unit", "")
    return f"{title(name)} ({unit})" if unit and unit not in name else title(name)


_DPI = 110


def draw_figures(analysis: Analysis, folder: Path, compare: Analysis | None = None) -> list[str]:
    """Write the figures of an analysis as PNG files; those whose measures are absent are left out.

    Args:
        analysis: the model's.
        folder: an existing folder.
        compare: of another model, which is drawn beside the first.

    Returns:
        Names of the files.
    """
    both = [analysis] if compare is None else [analysis, compare]
    figures: dict[str, Figure | None] = {
        "rank_and_mass.png": rank_and_mass_figure(both),
        "depth.png": depth_figure(both),
        "attention_maps.png": attention_figure(both),
        "heads.png": heads_figure(analysis),
        "spans.png": spans_figure(analysis),
    }
    if compare is not None:
        figures["heads_compared.png"] = heads_figure(compare)
    drawn = {name: figure for name, figure in figures.items() if figure is not None}
    for name, figure in drawn.items():
        figure.savefig(folder / name, dpi=_DPI)
    return list(drawn)
