"""``analysis.md``: an analysis on one page, with a sentence, figures, tables of all measures and rank correlations."""

import math
from pathlib import Path
from statistics import fmean

import numpy as np
from scipy.stats import spearmanr

from inheritune_lit.analysis.figures import draw_figures, title
from inheritune_lit.analysis.result import Analysis
from inheritune_lit.inherit.layers import layers_text
from inheritune_lit.io.tables import markdown_table

PAGE = "analysis.md"


def write_report(
    analysis: Analysis, folder: Path, compare: Analysis | None = None, advice: str | None = None
) -> list[str]:
    """Write the page and its figures.

    Args:
        analysis: of the model.
        folder: an existing folder.
        compare: of another model, which figures and page show beside the first.
        advice: Markdown on the choice of n, put below the figures.

    Returns:
        Names of the files.
    """
    figures = draw_figures(analysis, folder, compare)
    loss = analysis.loss
    parts = [
        f"# Analysis of {analysis.model.name}",
        sentence(analysis),
        *([sentence(compare)] if compare else []),
        f"Loss on these sequences: {loss.mean:.4f} ± {loss.stderr:.4f} nats per token. "
        f"Data: {analysis.settings['data']}, seed {analysis.settings['seed']}.",
        *(f"![{name.removesuffix('.png').replace('_', ' ')}]({name})" for name in figures),
        *([advice] if advice else []),
        _measures_by_layer(analysis),
        _definitions(analysis),
    ]
    (folder / PAGE).write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return [*figures, PAGE]


def by_layer(analysis: Analysis) -> dict[str, list[float]]:
    """Every measure as one number per layer, by name; NaN where it could not be measured.

    Measures of heads are averaged over the heads; rank and mass are those of both protocols. The logit-lens loss of a
    layer is that of a model that ends after it.
    """
    v2, v4 = analysis.protocols.v2, analysis.protocols.v4
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
        columns[title(name)] = each.mean[-analysis.model.n_layer :]
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
    depth = model.n_layer
    if not lazy:
        return f"{model.name}: none of {depth} layers is lazy ({measured})."
    count = f"{len(lazy)} of {depth} layers {'is' if len(lazy) == 1 else 'are'} lazy"
    text = f"{model.name}: {count}, {layers_text(lazy)} counted from 0; the first is layer {lazy[0]}"
    if settings["protocol"] == "v4" and analysis.lazy.groups:
        groups = (layers_text(list(range(first, last + 1))) for first, last in analysis.lazy.groups)
        text += f"; lazy groups {', '.join(groups)}"
    return f"{text} ({measured})."


def _measures_by_layer(analysis: Analysis) -> str:
    """The table of all measures and that of their rank correlations over the layers, as Markdown."""
    columns = by_layer(analysis)
    depth = analysis.model.n_layer
    lazy = set(analysis.lazy.layers)
    rows = [
        [f"{layer}{' (lazy)' if layer in lazy else ''}", *(_number(values[layer]) for values in columns.values())]
        for layer in range(depth)
    ]
    ranked = {"layer": [float(layer) for layer in range(depth)], **columns}
    names = list(ranked)
    correlations = [
        [names[row], *(_correlation(ranked[names[row]], ranked[other]) for other in names[:row]), "1"]
        + [""] * (len(names) - row - 1)
        for row in range(len(names))
    ]
    return "\n".join(
        [
            "## Measures by layer",
            "",
            "Means over sequences, and over heads where a head has its own; standard deviations and single heads are "
            "in `analysis.json`.",
            "",
            markdown_table(["layer", *columns], rows),
            "",
            "## Rank correlations over the layers",
            "",
            "Spearman's, of the columns above and the layer's number: two measures that only follow the depth "
            "correlate too.",
            "",
            markdown_table(["", *names], correlations),
        ]
    )


def _definitions(analysis: Analysis) -> str:
    """Formula, unit and source of every measure, as Markdown."""
    rows = [
        [title(name), *(_cell(text) for text in (about.formula, about.unit, about.source))]
        for name, about in analysis.measures.items()
    ]
    return f"## What was measured\n\n{markdown_table(['measure', 'formula', 'unit', 'source'], rows, left=range(4))}"


def _number(value: float) -> str:
    """Four digits, and a dash for what is not a number."""
    if not math.isfinite(value):
        return "-"
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        return f"{value:.4g}"
    return f"{value:.2e}"


def spearman(first: list[float], second: list[float]) -> float:
    """Spearman's rank correlation; NaN where fewer than three pairs of numbers are left, or one side is constant."""
    pairs = np.array([first, second], dtype=np.float64)
    pairs = pairs[:, np.isfinite(pairs).all(axis=0)]
    if pairs.shape[1] < 3 or (np.ptp(pairs, axis=1) == 0).any():
        return math.nan
    return float(spearmanr(*pairs).statistic)


def _correlation(first: list[float], second: list[float]) -> str:
    value = spearman(first, second)
    return "-" if math.isnan(value) else f"{value:.2f}"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
