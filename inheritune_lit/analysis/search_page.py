"""What a search found, for people: a table, a page and a figure."""

from pathlib import Path

from matplotlib.ticker import MaxNLocator

from inheritune_lit.inherit.args import layers_text
from inheritune_lit.inherit.searched import Search
from inheritune_lit.io.folders import replace_text
from inheritune_lit.io.plotting import draw_curve, draw_level, label_ends, new_figure, save_png
from inheritune_lit.io.tables import markdown_table, plain


def table(search: Search) -> str:
    """Returns the scores by n and way, and the layers that were found, as Markdown."""
    ways = {"search": search.found} | search.compared
    rows = []
    for n, found in search.found.items():
        scores = [f"{by_n[n].score:.3f} ± {by_n[n].stderr:.3f}" for by_n in ways.values()]
        rows.append([n, *scores, layers_text(found.layers)])
    return markdown_table(["n", *ways, "layers of the search"], rows, left=[len(ways) + 1])


def write_page(search: Search, out_dir: Path, fitted: int) -> list[str]:
    """Writes the page and the figure of a search, which fitted repairs on so many sequences; returns their names."""
    settings, whole = search.settings, search.whole
    unit = {"loss": "loss", "kl": "KL from the whole model"}[settings["score"]]
    figure, [axes] = new_figure(size=(7, 4.6))
    for number, (way, by_n) in enumerate(({"search": search.found} | search.compared).items()):
        scores, stderrs = zip(*((each.score, each.stderr) for each in by_n.values()), strict=True)
        draw_curve(axes, number, [*map(int, by_n)], scores, way, stderrs)
    draw_level(axes, whole.score, "whole model")
    axes.set(xlabel=f"layers of {search.model.name}'s {len(whole.layers)}, without training", ylabel=f"{unit}, nats")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.invert_xaxis()  # the way that the search went: curves end where they are apart
    label_ends(axes)
    save_png(figure, out_dir / "search.png")
    removed, kept = [], whole.layers
    for found in search.found.values():  # of a beam a round may bring layers back
        signs = {"-": set(kept) - set(found.layers), "+": set(found.layers) - set(kept)}
        removed.append(" ".join(sign + layers_text(sorted(layers)) for sign, layers in signs.items() if layers))
        kept = found.layers
    scored = settings["num_sequences"] - fitted
    repaired = f", after a linear repair of the cuts that was fitted on {fitted} others" if fitted else ""
    text = f"""# Layers of {plain(search.model.name)}

Mean {unit} in nats per token ± standard error, without training, on {scored} sequences of \
{settings["seq_length"]} tokens of {plain(search.data)}{repaired}; the whole model has {whole.score:.3f}.

{table(search)}

Removed, one after the other: {", ".join(removed)}.

![score against n](search.png)
"""
    replace_text(out_dir / "search.md", text)
    return ["search.md", "search.png"]
