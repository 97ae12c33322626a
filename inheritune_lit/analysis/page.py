"""``analysis.md``: an analysis on one page, with a sentence, figures, tables of all measures and rank correlations."""

import math
from collections.abc import Sequence
from itertools import groupby, zip_longest
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
_DECADES = 50
"""How far the largest value of a panel is above its smallest where the axis is logarithmic."""
_LOG_SCALE = ("attention_rank", "attention_mass", "head_output_norm")
"""Measures of heads where the difference between 1 and 2 matters more than that between 50 and 51."""
_MAPS_PER_ROW = 16


def draw_figures(analysis: Analysis, folder: Path, compare: Analysis | None = None) -> list[str]:
    """Write the figures of an analysis, and of another model beside it, as PNG files into a folder; return their names.

    Those whose measures are absent are left out.
    """
    both = [analysis] if compare is None else [analysis, compare]
    figures: dict[str, Figure | None] = {
        "rank_and_mass.png": rank_and_mass_figure(both),
        "depth.png": depth_figure(both),
        "attention_maps.png": attention_figure(both),
        "heads.png": heads_figure(analysis),
        "spans.png": spans_figure(analysis),
        "heads_compared.png": heads_figure(compare) if compare else None,
    }
    drawn = {name: figure for name, figure in figures.items() if figure is not None}
    for name, figure in drawn.items():
        save_png(figure, folder / name)
    return list(drawn)


def rank_and_mass_figure(analyses: Sequence[Analysis]) -> Figure:
    """Max rank and max mass against the layer with their standard deviation: Figures 1 and 9 of the paper.

    One row of panels per measure, one column per model; a model's lazy layers are grey.
    """
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
    """Block influence, output variance, losses and gradient norms against depth; several models in one panel."""
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
    """Attention matrices of chosen layers and heads, darker for more attention: Figure 2 of the paper.

    A layer's heads stand in one row, or several where they are many; the second model stands below the first. None
    where no maps were asked for.
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
        maps, name = analysis.maps, analysis.model.name
        mean_of = f"mean of {maps.strings} strings of {maps.tokens} tokens"
        part.suptitle(f"{name}: {maps.kind} attention, {mean_of}", fontsize="medium")
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
    """Every measure of heads as an image, head against layer."""
    names = list(analysis.heads)
    if not names:
        return None
    depth, heads = analysis.model.n_layer, analysis.model.n_head
    size = float(np.clip(0.22 * depth + 1.8, 4.2, 8.5)), float(np.clip(0.16 * heads + 1.2, 2.2, 5))
    figure, panels = _panels(len(names), 2, size)
    for axes, name in zip(panels, names, strict=True):
        _image(axes, np.array(analysis.heads[name].mean, dtype=float).T, name in _LOG_SCALE)
        axes.set(title=_with_unit(analysis, name), xlabel="layer", ylabel="head")
    figure.suptitle(f"{analysis.model.name}: {depth} layers of {heads} heads, means over sequences")
    return figure


def spans_figure(analysis: Analysis) -> Figure | None:
    """Measures of spans as images: length of the span against its first layer. None where all are single layers."""
    names = [name for name, lengths in analysis.spans.items() if len(lengths) > 1]
    if not names:
        return None
    depth = analysis.model.n_layer
    side = float(np.clip(0.2 * depth + 2, 4, 8))
    figure, panels = new_figure(len(names), 1, (side, 0.85 * side))
    for axes, name in zip(panels, names, strict=True):
        values_NL = np.array(list(zip_longest(*analysis.spans[name].values(), fillvalue=np.nan)), dtype=float).T
        _image(axes, values_NL, False, first_row=1)
        axes.set(title=_with_unit(analysis, name), xlabel="first layer of the span", ylabel="layers in the span")
        axes.invert_yaxis()
    figure.suptitle(f"{analysis.model.name}: spans of layers")
    return figure


def _panels(count: int, most: int, size: tuple[float, float]) -> tuple[Figure, Sequence[Axes]]:
    """A figure of panels in rows of at most so many; the last row may have fewer."""
    figure, panels = new_figure(columns := min(most, count), -(-count // columns), size)
    for axes in panels[count:]:
        axes.set_axis_off()
    return figure, panels[:count]


def title(measure: str) -> str:
    """A measure's name for people."""
    names = {"grad_norm_q": "gradient norm W_Q", "grad_norm_k": "gradient norm W_K"}
    return names.get(measure, measure.replace("_", " "))


def _with_unit(analysis: Analysis, name: str) -> str:
    unit = analysis.measures[name].unit if name in analysis.measures else ""
    return f"{title(name)} ({unit})" if unit and unit not in name else title(name)


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
    grid = []
    for _, of_layer in groupby(maps, key=lambda one: one.layer):
        row = list(of_layer)
        length = -(-len(row) // -(-len(row) // _MAPS_PER_ROW))
        grid += [row[start : start + length] for start in range(0, len(row), length)]
    return grid


def _image(axes: Axes, values: np.ndarray, log: bool, first_row: int = 0) -> None:
    finite = values[np.isfinite(values)]
    norm = LogNorm(finite.min(), finite.max()) if log and finite.size and 0 < finite.min() < finite.max() else None
    rows, columns = values.shape
    edges = (-0.5, columns - 0.5, first_row + rows - 0.5, first_row - 0.5)
    image = axes.imshow(values, aspect="auto", norm=norm, extent=edges, interpolation="nearest", cmap="viridis")
    axes.grid(False)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=12, integer=True, min_n_ticks=1))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
    bar = axes.figure.colorbar(image, ax=axes, pad=0.02)
    if norm is not None:
        bar.ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        bar.ax.yaxis.set_major_formatter("{x:g}")
        bar.ax.yaxis.set_minor_formatter(NullFormatter())


PAGE = "analysis.md"


def write_report(
    analysis: Analysis, folder: Path, compare: Analysis | None = None, advice: str | None = None
) -> list[str]:
    """Write the page of an analysis and its figures into a folder, and return the names of the files.

    Both show another model beside the first where there is one; ``advice`` is Markdown on the choice of n.
    """
    figures = draw_figures(analysis, folder, compare)
    loss, settings = analysis.loss, analysis.settings
    parts = [
        f"# Analysis of {analysis.model.name}",
        sentence(analysis),
        *([sentence(compare)] if compare else []),
        f"Loss on these sequences: {loss.mean:.4f} ± {loss.stderr:.4f} nats per token. "
        f"Data: {settings['data']}, seed {settings['seed']}.",
        *(f"![{name.removesuffix('.png').replace('_', ' ')}]({name})" for name in figures),
        *([advice] if advice else []),
        _measures_by_layer(analysis),
        _definitions(analysis),
    ]
    replace_text(folder / PAGE, "\n\n".join(parts) + "\n")
    return [*figures, PAGE]


def by_layer(analysis: Analysis) -> dict[str, list[float]]:
    """Every measure as one number per layer, by name; NaN where it could not be measured.

    Measures of heads are averaged over the heads; rank and mass are those of both protocols. The logit-lens loss of a
    layer is that of a model that ends after it.
    """
    v2, v4, depth = analysis.protocols.v2, analysis.protocols.v4, analysis.model.n_layer
    columns = {
        "max rank (v2)": v2.max_rank.mean,
        "max mass (v2)": v2.max_mass.mean,
        "max rank (v4)": v4.max_rank,
        "max mass (v4)": v4.max_mass,
        "avg rank": v4.avg_rank,
        "avg mass": v4.avg_mass,
    }
    for name, values in analysis.heads.items():
        if name not in ("attention_rank", "attention_mass"):
            columns[title(name)] = [fmean(row) for row in values.mean]
    for name, each in analysis.layers.items():
        columns[title(name)] = each.mean[-depth:]
    if "1" in (distances := analysis.spans.get("angular_distance", {})):
        columns["angular distance"] = distances["1"]
    return columns


def sentence(analysis: Analysis) -> str:
    """How many layers are lazy, where they begin, and under which settings that was measured."""
    model, settings, lazy = analysis.model, analysis.settings, analysis.lazy.layers
    measured = (
        f"{settings['num_sequences']} sequences, T={settings['seq_length']}, tau={settings['tau']:g}, "
        f"protocol {settings['protocol']}"
    )
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
        [f"{layer}{' (lazy)' if layer in lazy else ''}", *(_number(values[layer]) for values in columns.values())]
        for layer in range(analysis.model.n_layer)
    ]
    ranked = {"layer": [float(layer) for layer in range(len(rows))], **columns}
    correlations = []
    for row, (name, values) in enumerate(ranked.items()):
        with_others = [f"{spearman(values, other):.2f}".replace("nan", "-") for other in list(ranked.values())[:row]]
        correlations.append([name, *with_others, "1", *[""] * (len(ranked) - row - 1)])
    return f"""## Measures by layer

Means over sequences, and over heads where a head has its own; `analysis.json` has standard deviations and single heads.

{markdown_table(["layer", *columns], rows)}

## Rank correlations over the layers

Spearman's, of the columns above and the layer's number: two measures that only follow the depth correlate too.

{markdown_table(["", *ranked], correlations)}"""


def _definitions(analysis: Analysis) -> str:
    """Formula, unit and source of every measure, as Markdown."""
    rows = [[title(name), each.formula, each.unit, each.source] for name, each in analysis.measures.items()]
    return f"## What was measured\n\n{markdown_table(['measure', 'formula', 'unit', 'source'], rows, left=range(4))}"


def _number(value: float) -> str:
    """Four digits, and a dash for what is not a number."""
    if not math.isfinite(value):
        return "-"
    return f"{value:.4g}" if value == 0 or 1e-3 <= abs(value) < 1e4 else f"{value:.2e}"


def spearman(first: list[float], second: list[float]) -> float:
    """Spearman's rank correlation; NaN where fewer than three pairs of numbers are left, or one side is constant."""
    pairs = np.array([first, second], dtype=np.float64)
    pairs = pairs[:, np.isfinite(pairs).all(axis=0)]
    if pairs.shape[1] < 3 or (np.ptp(pairs, axis=1) == 0).any():
        return math.nan
    return float(spearmanr(*pairs).statistic)
