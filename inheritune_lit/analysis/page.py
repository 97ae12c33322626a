"""``analysis.md``: an analysis on one page, with a sentence, figures, tables of all measures and rank correlations."""

import math
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from statistics import fmean

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from scipy.stats import spearmanr

from inheritune_lit.analysis.result import Analysis, AttentionMap
from inheritune_lit.inherit.args import layers_text
from inheritune_lit.io.folders import replace_text
from inheritune_lit.io.plotting import GREY, draw_curve, new_figure, save_png, style
from inheritune_lit.io.tables import markdown_table

_LAZY = Patch(facecolor="0.88", label="lazy layer")
_DECADES = 50  # how far the largest value of a panel is above its smallest where the axis is logarithmic
_LOG_SCALE = ("attention_rank", "attention_mass", "head_output_norm")
"""Measures of heads where the difference between 1 and 2 matters more than that between 50 and 51."""
_MAPS_PER_ROW = 16


def draw_figures(analysis: Analysis, folder: Path, compare: Analysis | None = None) -> list[str]:
    """Write the figures of one or two analyses as PNG files, where the measures are there, and return their names."""
    both = [analysis] if compare is None else [analysis, compare]
    figures: dict[str, Figure | None] = {
        "rank_and_mass.png": rank_and_mass_figure(both),
        "depth.png": depth_figure(both),
        "attention_maps.png": attention_figure(both),
        "heads.png": heads_figure(analysis),
        "heads_compared.png": heads_figure(compare) if compare else None,
    }
    drawn = {name: figure for name, figure in figures.items() if figure is not None}
    for name, figure in drawn.items():
        save_png(figure, folder / name)
    return list(drawn)


def rank_and_mass_figure(analyses: Sequence[Analysis]) -> Figure:
    """Max rank and mass by layer with deviations, lazy layers grey, a column per model: the paper's Figures 1 and 9."""
    count = len(analyses)
    figure, panels = new_figure(count, 2, (6.2, 2.9), sharey="row")
    for column, analysis in enumerate(analyses):
        v2, v4 = analysis.protocols.v2, analysis.protocols.v4
        layers = np.arange(analysis.model.n_layer)
        rank = "rank", v2.max_rank, v4.max_rank, v4.avg_rank
        mass = "mass", v2.max_mass, v4.max_mass, v4.avg_mass
        for axes, (measure, largest, of_means, mean_of_means) in zip(panels[column::count], (rank, mass), strict=True):
            _shade(axes, analysis)
            _band(axes, column, largest.mean, largest.std, "max over heads, mean ± std over sequences (v2)")
            axes.plot(layers, of_means, color="black", lw=1, ls="--", label="max of the heads' means (v4)")
            axes.plot(layers, mean_of_means, color=GREY, lw=1, ls=":", label="mean of the heads' means (v4)")
            axes.set_ylabel(f"attention {measure}, of {analysis.settings['seq_length']}")
            _layer_axis(axes, len(layers))
        panels[column].set_title(_name(analysis), fontsize="medium")
    for axes in panels[::count]:  # once all models are in: setting a limit ends the automatic choice of the other
        axes.set_ylim(bottom=0)
    figure.legend(handles=[*panels[0].lines, _LAZY], loc="outside lower center", fontsize="small", ncols=2)
    return figure


def depth_figure(analyses: Sequence[Analysis]) -> Figure | None:
    """Block influence, output variance, and losses against depth; several models in one panel."""
    names = list(dict.fromkeys(name for analysis in analyses for name in analysis.layers))
    if not names:
        return None
    figure, panels = _panels(len(names), 3, (4.2, 3.1))
    for axes, name in zip(panels, names, strict=True):
        for number, analysis in enumerate(analyses):
            if name in analysis.layers:
                _band(axes, number, analysis.layers[name].mean, analysis.layers[name].std, analysis.model.name)
        unit = next((each.measures[name].unit for each in analyses if name in each.measures), "")
        axes.set(title=title(name), ylabel=unit)
        # The lens has one value more: after none, one, ... of the layers.
        lens = name == "logit_lens_loss"
        _layer_axis(axes, np.size(axes.lines[0].get_xdata()), "layers kept, from the first" if lens else "layer")
        if len(analyses) == 1 and not lens:
            _shade(axes, analyses[0])
        values = np.concatenate([line.get_ydata() for line in axes.lines])
        values = values[np.isfinite(values)]
        if values.size and 0 < values.min() < values.max() / _DECADES:
            axes.set_yscale("log")
    handles = [*panels[0].lines, *([_LAZY] if len(analyses) == 1 and analyses[0].lazy.layers else [])]
    figure.legend(handles=handles, loc="outside lower center", fontsize="small", ncols=3)
    figure.suptitle(" and ".join(_name(analysis) for analysis in analyses))
    return figure


def attention_figure(analyses: Sequence[Analysis]) -> Figure | None:
    """Attention matrices of chosen layers and heads, darker for more: Figure 2 of the paper; None without maps.

    A layer's heads stand in one row, or several where they are many; the second model stands below the first.
    """
    shown = [analysis for analysis in analyses if analysis.maps.attention]
    grids = [_grid(analysis.maps.attention) for analysis in shown]
    if not grids:
        return None
    columns = max(len(row) for grid in grids for row in grid)
    heights = [len(grid) for grid in grids]
    side = float(np.clip(16 / columns, 0.6, 1.7))
    size = max(5.5, side * columns + 0.9), (side + 0.2) * sum(heights) + 0.6 * len(grids)
    figure = Figure(figsize=size, layout="constrained")
    parts = figure.subfigures(len(grids), 1, height_ratios=heights, squeeze=False).ravel()
    for part, grid, analysis in zip(parts, grids, shown, strict=True):
        maps = analysis.maps
        what = f"{maps.kind} attention, mean of {maps.strings} strings of {maps.tokens} tokens"
        part.suptitle(f"{analysis.model.name}: {what}", fontsize="medium")
        panels = part.subplots(len(grid), columns, squeeze=False)
        for axes in panels.ravel():
            axes.set_axis_off()
        for row, row_panels in zip(grid, panels, strict=True):
            for one, axes in zip(row, row_panels, strict=False):
                # The square root shows the weak weights beside a sink.
                image = axes.imshow(np.sqrt(one.weights), cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
                axes.set_title(f"L{one.layer} H{one.head}", fontsize="small", pad=3)
                axes.set_axis_on()
                axes.set(xticks=[], yticks=[])
        bar = part.colorbar(image, ax=panels, shrink=0.8, pad=0.01)
        bar.set_ticks([0, 0.1**0.5, 0.5**0.5, 1], labels=["0", "0.1", "0.5", "1"])
        bar.set_label("attention", fontsize="small")
    return figure


def heads_figure(analysis: Analysis) -> Figure | None:
    """Every measure of heads as an image, head against layer; None where there is none."""
    depth, heads = analysis.model.n_layer, analysis.model.n_head
    size = float(np.clip(0.22 * depth + 1.8, 4.2, 8.5)), float(np.clip(0.16 * heads + 1.2, 2.2, 5))
    images = {name: np.array(each.mean, dtype=float).T for name, each in analysis.heads.items()}
    if not images:
        return None
    figure, panels = _panels(len(images), 2, size)
    for axes, (name, values) in zip(panels, images.items(), strict=True):
        finite = values[np.isfinite(values)]
        is_log = name in _LOG_SCALE and finite.size and 0 < finite.min() < finite.max()
        norm = LogNorm(finite.min(), finite.max()) if is_log else None
        image = axes.imshow(values, aspect="auto", norm=norm, interpolation="nearest", cmap="viridis")
        unit = analysis.measures[name].unit if name in analysis.measures else ""
        axes.set_title(f"{title(name)} ({unit})" if unit and unit not in name else title(name))
        axes.set(xlabel="layer", ylabel="head")
        axes.grid(False)
        for axis, bins in ((axes.xaxis, 12), (axes.yaxis, 8)):
            axis.set_major_locator(MaxNLocator(nbins=bins, integer=True, min_n_ticks=1))
        bar = figure.colorbar(image, ax=axes, pad=0.02)
        if norm is not None:
            bar.ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            bar.ax.yaxis.set_major_formatter("{x:g}")
            bar.ax.yaxis.set_minor_formatter(NullFormatter())
    figure.suptitle(f"{analysis.model.name}: {depth} layers of {heads} heads, means over sequences")
    return figure


def _panels(count: int, most: int, size: tuple[float, float]) -> tuple[Figure, Sequence[Axes]]:
    """A figure of panels in rows of at most so many; the last row may have fewer."""
    figure, panels = new_figure(columns := min(most, count), -(-count // columns), size)
    for axes in panels[count:]:
        axes.set_axis_off()
    return figure, panels[:count]


def title(measure: str) -> str:
    """A measure's name for people."""
    return measure.replace("_", " ")


def _name(analysis: Analysis) -> str:
    lazy, protocol = len(analysis.lazy.layers), analysis.settings["protocol"]
    return f"{analysis.model.name}: {analysis.model.n_layer} layers, {lazy} lazy ({protocol})"


def _band(axes: Axes, number: int, mean: Sequence[float], std: Sequence[float], label: str) -> None:
    """Draws means by layer, and a band of one standard deviation around them."""
    middle, half, layers = np.array(mean), np.array(std), range(len(mean))
    draw_curve(axes, number, layers, mean, label)
    axes.fill_between(layers, middle - half, middle + half, color=style(number)["color"], alpha=0.2, lw=0)


def _shade(axes: Axes, analysis: Analysis) -> None:
    for layer in analysis.lazy.layers:
        axes.axvspan(layer - 0.5, layer + 0.5, color=_LAZY.get_facecolor(), lw=0, zorder=0)


def _layer_axis(axes: Axes, count: int, label: str = "layer") -> None:
    axes.set(xlabel=label, xlim=(-0.6, count - 0.4))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=12, integer=True, min_n_ticks=1))


def _grid(maps: list[AttentionMap]) -> list[list[AttentionMap]]:
    """The maps by layer, in the order they have; those of many heads take several rows of about the same length."""
    rows = [list(of_layer) for _, of_layer in groupby(maps, key=lambda one: one.layer)]
    lengths = [-(-len(row) // -(-len(row) // _MAPS_PER_ROW)) for row in rows]
    return [row[at : at + n] for row, n in zip(rows, lengths, strict=True) for at in range(0, len(row), n)]


PAGE = "analysis.md"


def write_report(analysis: Analysis, folder: Path, compare: Analysis | None = None) -> list[str]:
    """Write an analysis's page and figures, another model's beside; return the files' names."""
    figures = draw_figures(analysis, folder, compare)
    loss, settings = analysis.loss, analysis.settings
    definitions = [[title(name), each.formula, each.unit, each.source] for name, each in analysis.measures.items()]
    parts = [
        f"# Analysis of {analysis.model.name}",
        sentence(analysis),
        *([sentence(compare)] if compare else []),
        f"Loss on these sequences: {loss.mean:.4f} ± {loss.stderr:.4f} nats per token. "
        f"Data: {settings['data']}, seed {settings['seed']}.",
        *(f"![{name.removesuffix('.png').replace('_', ' ')}]({name})" for name in figures),
        _measures_by_layer(analysis),
        "## What was measured",
        markdown_table(["measure", "formula", "unit", "source"], definitions, left=range(4)),
    ]
    replace_text(folder / PAGE, "\n\n".join(parts) + "\n")
    return [*figures, PAGE]


def by_layer(analysis: Analysis) -> dict[str, list[float]]:
    """Every measure as one number per layer, by name, means over heads; NaN where it could not be measured.

    Rank and mass are those of both protocols; the logit-lens loss is that of a model that ends after the layer.
    """
    columns = {f"{title(name)} (v2)": each.mean for name, each in vars(analysis.protocols.v2).items()}
    for name, values in vars(analysis.protocols.v4).items():
        columns[title(name) + " (v4)" * name.startswith("max")] = values
    for name, by_head in analysis.heads.items():
        if name not in ("attention_rank", "attention_mass"):
            columns[title(name)] = [fmean(row) for row in by_head.mean]
    for name, each in analysis.layers.items():
        columns[title(name)] = each.mean[-analysis.model.n_layer :]
    return columns


def sentence(analysis: Analysis) -> str:
    """How many layers are lazy, where they begin, and under which settings that was measured."""
    model, settings, lazy = analysis.model, analysis.settings, analysis.lazy.layers
    measured = f"{settings['num_sequences']} sequences, T={settings['seq_length']}, tau={settings['tau']:g}"
    measured += f", protocol {settings['protocol']}"
    if not lazy:
        return f"{model.name}: none of {model.n_layer} layers is lazy ({measured})."
    count = f"{len(lazy)} of {model.n_layer} layers {'is' if len(lazy) == 1 else 'are'} lazy"
    text = f"{model.name}: {count}, {layers_text(lazy)} counted from 0; the first is layer {lazy[0]}"
    if settings["protocol"] == "v4" and analysis.lazy.groups:
        groups = (layers_text(range(first, last + 1)) for first, last in analysis.lazy.groups)
        text += f"; lazy groups {', '.join(groups)}"
    return f"{text} ({measured})."


def _measures_by_layer(analysis: Analysis) -> str:
    """The table of all measures and that of their rank correlations over the layers, as Markdown."""
    columns, lazy = by_layer(analysis), analysis.lazy.layers
    rows = [
        [f"{layer}{' (lazy)' * (layer in lazy)}", *(_told(values[layer], ".4g") for values in columns.values())]
        for layer in range(analysis.model.n_layer)
    ]
    ranked = {"layer": [float(layer) for layer in range(len(rows))], **columns}
    correlations = []
    for row, (name, values) in enumerate(ranked.items()):
        with_others = [_told(spearman(values, other), ".2f") for other in list(ranked.values())[:row]]
        correlations.append([name, *with_others, "1"])
    return f"""## Measures by layer

Means over sequences, and over heads where a head has its own; `analysis.json` has standard deviations and single heads.

{markdown_table(["layer", *columns], rows)}

## Rank correlations over the layers

Spearman's, of the columns above and the layer's number: two measures that only follow the depth correlate too.

{markdown_table(["", *ranked], correlations)}"""


def _told(value: float, digits: str) -> str:
    return f"{value:{digits}}" if math.isfinite(value) else "-"


def spearman(first: list[float], second: list[float]) -> float:
    """Spearman's rank correlation; NaN where fewer than three pairs of numbers are left, or one side is constant."""
    pairs = np.array([first, second], dtype=np.float64)
    pairs = pairs[:, np.isfinite(pairs).all(axis=0)]
    if pairs.shape[1] < 3 or (np.ptp(pairs, axis=1) == 0).any():
        return math.nan
    return float(spearmanr(*pairs).statistic)
