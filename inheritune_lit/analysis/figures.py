"""All figures of an analysis."""

from pathlib import Path

from matplotlib.figure import Figure

from inheritune_lit.analysis.figure_curves import depth_figure, rank_and_mass_figure
from inheritune_lit.analysis.figure_maps import attention_figure, heads_figure, spans_figure
from inheritune_lit.analysis.result import Analysis

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
