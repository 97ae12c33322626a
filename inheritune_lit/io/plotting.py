"""How figures are drawn: one set of colours, curves labelled where they end, and PNG files that do not change."""

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Annotation, Text
from matplotlib.ticker import EngFormatter, FuncFormatter
from matplotlib.transforms import ScaledTranslation
from scipy.optimize import isotonic_regression

from inheritune_lit.errors import printable
from inheritune_lit.io.folders import replace_file

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's, which colour-blind readers tell apart; their yellow is too light for lines on white."""
GREY = "0.45"
Floats = Sequence[float]
_LINES = ("-", "--", "-.", ":")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
_DPI = 130
_MOST = 1e30  # of any axis: matplotlib cannot divide what is near the largest number
_LABEL_SIZE = 8
_END_LABEL = "label at the end of a curve"


def style(number: int) -> dict[str, Any]:
    """Returns a curve's colour, line style and marker as ``Axes.plot`` takes them; the three have different periods."""
    choices = {"color": COLOURS, "linestyle": _LINES, "marker": _MARKERS, "markersize": [3.5], "linewidth": [1.3]}
    return {name: values[number % len(values)] for name, values in choices.items()}


def new_figure(
    columns: int = 1, rows: int = 1, size: tuple[float, float] = (5.5, 4.2), **kwargs: Any
) -> tuple[Figure, list[Axes]]:
    """Makes a figure with panels of this size in inches, row by row; ``kwargs`` are for ``Figure.subplots``."""
    figure = Figure(figsize=(size[0] * columns, size[1] * rows), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False, **kwargs).ravel())
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="0.9", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.ticklabel_format(useOffset=False, style="plain")
    return figure, panels


def draw_curve(
    axes: Axes, number: int, x: Floats, y: Floats, label: str | None = None, stderr: Floats | None = None
) -> None:
    """Draws a curve in the style of its number, which a thing keeps in all panels.

    ``label`` is for ``label_ends``, None for a further curve; ``stderr`` is half the length of each error bar.
    """
    look = style(number)
    places, heights = _drawable(x), _drawable(y)
    axes.plot(places, heights, label=label, **look)
    if stderr is not None and len(y):
        bars = {"yerr": np.abs(_drawable(stderr)), "ecolor": look["color"], "elinewidth": 0.9, "capsize": 2}
        axes.errorbar(places, heights, fmt="none", **bars)


def _drawable(values: Floats) -> np.ndarray:
    array = np.asarray(values, dtype=float)
    return np.where(np.abs(array) < _MOST, array, np.nan)


def draw_level(axes: Axes, value: float, label: str) -> None:
    """Draws a grey dashed line across the panel for a value that the curves are compared with."""
    axes.axhline(value, color=GREY, linestyle=(0, (6, 3)), linewidth=1, label=label, zorder=1)


def engineering_ticks(axis: Axis, unit: str = "") -> None:
    """Writes the ticks of an axis as 200k, 8M or 1.5G instead of a power of ten at the end of the axis."""
    axis.set_major_formatter(EngFormatter(unit=unit, sep=""))


def label_ends(axes: Axes) -> None:
    """Writes the label of every curve right of the panel, with a line to its end; ``save_png`` moves labels apart."""
    beside = axes.transAxes + ScaledTranslation(8 / 72, 0, axes.figure.dpi_scale_trans)
    for line in axes.lines:
        y = np.asarray(line.get_ydata(), dtype=float)
        shown = np.flatnonzero(np.isfinite(y))
        label = str(line.get_label())
        if re.fullmatch(r"_child\d+|_nolegend_", label) or not shown.size:  # matplotlib's own labels
            continue
        end = (float(np.asarray(line.get_xdata())[shown[-1]]), float(y[shown[-1]]))
        place = "data" if _is_data(line, axes) else axes.get_yaxis_transform()
        look: dict[str, Any] = {"va": "center", "fontsize": _LABEL_SIZE, "annotation_clip": False, "gid": _END_LABEL}
        leader: dict[str, Any] = {"arrowstyle": "-", "relpos": (0, 0.5), "shrinkA": 1, "shrinkB": 2}
        leader |= {"color": line.get_color(), "linewidth": 0.8, "linestyle": (0, (1, 2))}
        axes.annotate(label, end, (1.0, 0.5), xycoords=place, textcoords=beside, arrowprops=leader, **look)


def save_png(figure: Figure, path: Path | None = None) -> bytes:
    """Returns a figure as PNG, the same bytes for the same figure, and writes it whole where a path is given."""
    _show_names_as_they_are(figure)
    # How far labels have to move follows from the height of the panels, which stays as it is from here on.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes in figure.axes:
        _spread_labels(axes)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=_DPI, metadata={"Software": None})
    content = stream.getvalue()
    if path is not None:
        replace_file(path, lambda aside: aside.write_bytes(content))
    return content


def _show_names_as_they_are(figure: Figure) -> None:
    """Keeps matplotlib from reading formulas into names, such as one with two dollars; ticks may be formulas."""
    for axes in figure.axes:
        texts: list[Text] = [*axes.texts, axes.title, axes.xaxis.label, axes.yaxis.label]
        for axis in (axes.xaxis, axes.yaxis):
            if isinstance(axis.get_major_formatter(), FuncFormatter):  # which set_xticks with labels makes
                texts += axis.get_ticklabels()
        for text in texts:
            text.set_parse_math(False)
            text.set_text(printable(text.get_text(), keep="\n"))


def _is_data(line: Line2D, axes: Axes) -> bool:
    """Tells whether the x values of a line are data, which those of ``axhline`` are not."""
    return line.get_transform().contains_branch_seperately(axes.transData)[0]


def _spread_labels(axes: Axes) -> None:
    """Moves the labels at the ends of curves apart, each as little as possible."""
    labels = [text for text in axes.texts if isinstance(text, Annotation) and text.get_gid() == _END_LABEL]
    if not labels:
        return
    ends = axes.transAxes.inverted().transform(axes.transData.transform([(0, text.xy[1]) for text in labels]))[:, 1]
    apart = 1.25 * _LABEL_SIZE / 72 * axes.figure.dpi / axes.get_window_extent().height
    order = np.argsort(ends, kind="stable")
    for position, index in zip(spread_apart(ends[order], apart), order, strict=True):
        labels[index].xyann = (1.0, float(position))


def spread_apart(heights: np.ndarray, apart: float) -> np.ndarray:
    """Returns ascending heights moved by least squares until ``apart``, and within 0 to 1 where there is space."""
    places = apart * np.arange(len(heights))
    moved = heights + (isotonic_regression(heights - places).x - (heights - places))
    return np.minimum(np.maximum(moved, places), 1 - places[::-1])
