"""What an analysis says, in words: one sentence, one table of all measures by layer, and their rank correlations."""

import math
from statistics import fmean

from inheritune_lit.analysis.layer_dropping import spearman
from inheritune_lit.analysis.result import Analysis
from inheritune_lit.inherit.layers import layers_text


def by_layer(analysis: Analysis) -> dict[str, list[float]]:
    """Every measure as one number a layer, by name: [L] each, NaN where it could not be measured.

    Measures of heads are averaged over the heads; rank and mass are those of both protocols. The logit-lens loss of a
    layer is that of a model that ends after it.
    """
    v2, v4 = analysis.protocols["v2"], analysis.protocols["v4"]
    columns = {
        "max rank (v2)": v2["max_rank"]["mean"],
        "max mass (v2)": v2["max_mass"]["mean"],
        "max rank (v4)": v4["max_rank"],
        "max mass (v4)": v4["max_mass"],
        "avg rank": v4["avg_rank"],
        "avg mass": v4["avg_mass"],
    }
    for name, values in analysis.heads.items():
        if name not in ("attention_rank", "attention_mass"):
            columns[title(name)] = [fmean(row) for row in values["mean"]]
    for name, each in analysis.layers.items():
        columns[title(name)] = each["mean"][-analysis.model["n_layer"] :]
    if "1" in (distances := analysis.spans.get("angular_distance", {})):
        columns["angular distance"] = distances["1"]
    return columns


def title(measure: str) -> str:
    """A measure's name for people."""
    return {"grad_norm_q": "gradient norm W_Q", "grad_norm_k": "gradient norm W_K"}.get(
        measure, measure.replace("_", " ")
    )


def sentence(analysis: Analysis) -> str:
    """How many layers are lazy, where they begin, and under which settings that was measured."""
    model, settings, lazy = analysis.model, analysis.settings, analysis.lazy["layers"]
    measured = (
        f"{settings['num_sequences']} sequences, T={settings['seq_length']}, tau={settings['tau']:g}, "
        f"protocol {settings['protocol']}"
    )
    depth = model["n_layer"]
    if not lazy:
        return f"{model['name']}: none of {depth} layers is lazy ({measured})."
    count = f"{len(lazy)} of {depth} layers {'is' if len(lazy) == 1 else 'are'} lazy"
    text = f"{model['name']}: {count}, {layers_text(lazy)} counted from 0; the first is layer {lazy[0]}"
    if settings["protocol"] == "v4" and analysis.lazy["groups"]:
        groups = (layers_text(list(range(first, last + 1))) for first, last in analysis.lazy["groups"])
        text += f"; lazy groups {', '.join(groups)}"
    return f"{text} ({measured})."


def table_text(analysis: Analysis) -> str:
    """The table of all measures and that of their rank correlations over the layers, as Markdown."""
    columns = by_layer(analysis)
    depth = analysis.model["n_layer"]
    lazy = set(analysis.lazy["layers"])
    rows = [
        [f"{layer}{' (lazy)' if layer in lazy else ''}", *(number(values[layer]) for values in columns.values())]
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
            *markdown(["layer", *columns], rows),
            "",
            "## Rank correlations over the layers",
            "",
            "Spearman's, of the columns above and the layer's number: two measures that only follow the depth "
            "correlate too.",
            "",
            *markdown(["", *names], correlations),
        ]
    )


def definitions_text(analysis: Analysis) -> str:
    """Formula, unit and source of every measure, as Markdown."""
    rows = [
        [title(name), *(_cell(about[key]) for key in ("formula", "unit", "source"))]
        for name, about in analysis.measures.items()
    ]
    return "\n".join(["## What was measured", "", *markdown(["measure", "formula", "unit", "source"], rows, text=True)])


def markdown(header: list[str], rows: list[list[str]], text: bool = False) -> list[str]:
    """A table's lines; numbers stand to the right, and so does all but the first column unless it is ``text``."""
    align = ["---"] + ["---" if text else "--:"] * (len(header) - 1)
    return [f"| {' | '.join(cells)} |" for cells in (header, align, *rows)]


def number(value: float) -> str:
    """Four digits, and a dash for what is not a number."""
    if not math.isfinite(value):
        return "-"
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        return f"{value:.4g}"
    return f"{value:.2e}"


def _correlation(first: list[float], second: list[float]) -> str:
    value = spearman(first, second)
    return "-" if math.isnan(value) else f"{value:.2f}"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
