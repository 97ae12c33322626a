"""Measures drawn against the layer."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from inheritune_lit.analysis.layer_table import title
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
