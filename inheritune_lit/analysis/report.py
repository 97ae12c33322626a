"""``analysis.md``: an analysis on one page."""

from pathlib import Path

from inheritune_lit.analysis.figures import draw_figures
from inheritune_lit.analysis.page import definitions_text, sentence, table_text
from inheritune_lit.analysis.result import Analysis

REPORT = "analysis.md"


def write_report(
    analysis: Analysis, folder: Path, compare: Analysis | None = None, advice: str | None = None
) -> list[str]:
    """Write the page and its figures.

    Args:
        analysis: the model's.
        folder: an existing folder.
        compare: of another model, which figures and page show beside the first.
        advice: Markdown on the choice of n, put below the figures.

    Returns:
        Names of the files.
    """
    figures = draw_figures(analysis, folder, compare)
    loss = analysis.loss
    parts = [
        f"# Analysis of {analysis.model['name']}",
        sentence(analysis),
        *([sentence(compare)] if compare else []),
        f"Loss on these sequences: {loss['mean']:.4f} ± {loss['stderr']:.4f} nats a token. "
        f"Data: {analysis.settings['data']}, seed {analysis.settings['seed']}.",
        *(f"![{name.removesuffix('.png').replace('_', ' ')}]({name})" for name in figures),
        *([advice] if advice else []),
        table_text(analysis),
        definitions_text(analysis),
    ]
    (folder / REPORT).write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return [*figures, REPORT]
