"""What a search found, for people: a table, a page and a figure."""

from pathlib import Path

from inheritune_lit.inherit.args import layers_text
from inheritune_lit.inherit.searched import Search
from inheritune_lit.io.folders import replace_text
from inheritune_lit.io.plotting import draw_curve, draw_level, label_ends, new_figure, save_png
from inheritune_lit.io.tables import markdown_table, plain

_UNITS = {"loss": "loss", "kl": "KL from the whole model"}


def table(search: Search) -> str:
    """Returns the scores by n and way, and the layers that were found, as Markdown."""
    ways = {"search": search.found} | search.compared
    rows = []
    for n, found in search.found.items():
        scores = [f"{by_depth[n].score:.3f} ± {by_depth[n].stderr:.3f}" for by_depth in ways.values()]
        rows.append([n, *scores, layers_text(found.layers)])
    return markdown_table(["n", *ways, "layers of the search"], rows, left=[len(ways) + 1])


def write_page(search: Search, out_dir: Path) -> list[str]:
    """Writes the page and the figure of a finished search, and returns their names."""
    settings, unit = search.settings, _UNITS[search.settings.score]
    figure, [axes] = new_figure(size=(7, 4.6))
    for number, (way, by_depth) in enumerate(({"search": search.found} | search.compared).items()):
        points = list(by_depth.values())
        draw_curve(
            axes, number, [*map(int, by_depth)], [each.score for each in points], way, [each.stderr for each in points]
        )
    draw_level(axes, search.whole.score, "whole model")
    axes.set_xlabel(f"layers of {search.model.name}'s {len(search.whole.layers)}, without training")
    axes.set_ylabel(f"{unit}, nats per token")
    label_ends(axes)
    save_png(figure, out_dir / "search.png")
    kept, removed = set(search.whole.layers), []
    for found in search.found.values():
        gone, back = kept - set(found.layers), set(found.layers) - kept
        removed.append(layers_text(sorted(gone)) + (f" (+{layers_text(sorted(back))})" if back else ""))
        kept = set(found.layers)
    sequences = f"{settings.num_sequences} sequences of {settings.seq_length} tokens of {plain(search.data)}"
    text = f"""# Layers of {plain(search.model.name)}

Mean {unit} in nats per token ± standard error, without training, on {sequences}; the whole model has \
{search.whole.score:.3f}.

{table(search)}

Order of removal: {", ".join(removed)}.

![score against n](search.png)
"""
    replace_text(out_dir / "search.md", text)
    return ["search.md", "search.png"]
