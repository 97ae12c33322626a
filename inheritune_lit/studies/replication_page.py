"""The page of a replication: a table and curves per comparison, and attention rank by layer (the paper's Figure 9)."""

import math
from pathlib import Path
from typing import Any

from inheritune_lit import AnalyzeArgs, PackedDataset, analyze
from inheritune_lit.io.folders import replace_text
from inheritune_lit.io.plotting import engineering_ticks, label_ends, new_figure, save_png, zoom_in
from inheritune_lit.io.tables import markdown_table
from inheritune_lit.studies.results import SeedSummary, by_title, draw_mean_curve, summarize
from inheritune_lit.studies.runner import ExperimentResult

PAGE = "replication.md"
TABLE_1 = "Table 1: against training from scratch"
TABLE_2 = "Table 2: against other ways to begin"
TABLE_3 = "Table 3: parts of the layers"
FIGURE_1 = "Figures 1c and 1f: which layers to begin with"
FIGURE_3 = "Figure 3: against distillation"
_OURS = "Inheritune"
_CURVES = {  # the paper's figure of each comparison's curves
    TABLE_1: ("figure-5.png", "Figure 5: training curves against training from scratch"),
    TABLE_2: ("figure-6.png", "Figure 6: training curves of other ways to begin"),
    TABLE_3: ("figure-7.png", "Figure 7: training curves of parts of the layers"),
    FIGURE_3: ("figure-3.png", "Figure 3: training curves against distillation"),
    FIGURE_1: ("figure-1.png", "Figures 1c and 1f: training curves by the layers to begin with"),
}
_SEQUENCES, _TOKENS = 100, 100  # the paper's, Section 2


def write_page(out_dir: Path, name: str, scale: dict[str, Any], results: list[ExperimentResult]) -> None:
    """Writes ``replication.md`` and a figure per comparison; both models of Figure 9 are analysed for it.

    Args:
        name: of the scale.
        scale: its sizes.
        results: of all models that are done.
    """
    tokens = scale["steps"] * scale["batch"] * scale["block_size"]
    parts = [
        f"# Replication at the scale `{name}`",
        "GPT-2 models as the paper's (no biases, learned positions, tied head, attention scaled by the layer's number):"
        f" {scale['n_layer']} layers of width {scale['n_embd']} for the reference, {scale['variant']} for the small "
        f"model, {scale['block_size']} tokens per sample, a vocabulary of {scale['vocab_size']:,}. T is "
        f"{scale['steps']} steps of {scale['batch']} samples, {tokens:,} tokens. Losses are held-out, in nats per "
        "token, on the same samples for all: mean over seeds ± standard deviation over seeds (one seed: ± standard "
        "error over samples); differences are seed by seed. Steps and tokens are those of the training itself, as in "
        "the paper: what a model starts from (the reference's T steps, or a teacher's) is not counted.",
    ]
    shown: set[str] = set()
    for group, (file, title) in _CURVES.items():
        models = by_title(results, group)
        if models.keys() <= shown:  # of what is compared here nothing has been trained
            continue
        shown |= models.keys()
        _draw(out_dir / file, models)
        parts += [f"## {group}", _table(models), f"![{title}]({file})"]
    parts += _rank_section(out_dir, scale["block_size"])
    replace_text(out_dir / PAGE, "\n\n".join(parts) + "\n")


def _table(models: dict[str, list[ExperimentResult]]) -> str:
    ours = models.get(_OURS) or next(iter(models.values()))
    rows = []
    for title, runs in models.items():
        run, summary = runs[0], summarize(runs, ours)
        sizes = [f"{value:,}" for value in (run.n_layer, run.n_embd, run.parameters, run.steps, run.tokens, len(runs))]
        noise = summary.stderr if math.isnan(summary.std) else summary.std
        rows.append([title, *sizes, f"{summary.loss:.3f} ± {noise:.3f}", "" if runs is ours else _difference(summary)])
    header = ["model", "layers", "width", "parameters", "steps", "tokens", "seeds", "held-out loss"]
    return markdown_table([*header, f"minus {ours[0].title}'s"], rows)


def _difference(summary: SeedSummary) -> str:
    if not summary.paired:
        return ""
    noise = "" if math.isnan(summary.difference_std) else f" ± {summary.difference_std:.3f}"
    return f"{summary.difference:+.3f}{noise}"


def _draw(path: Path, models: dict[str, list[ExperimentResult]]) -> None:
    figure, (whole, end) = new_figure(2)
    for number, runs in enumerate(models.values()):
        for axes in (whole, end):
            draw_mean_curve(axes, number, runs)
    longest = max(runs[0].tokens for runs in models.values())
    # The last part decides, and is flat beside the first.
    zoom_in(end, min(0.5 * longest, 0.75 * min(runs[0].tokens for runs in models.values())), longest)
    whole.set(xlabel="tokens trained", ylabel="held-out loss (nats per token)", title="From the start")
    end.set(xlabel="tokens trained", title="Towards the end")
    for axes in (whole, end):
        engineering_ticks(axes.xaxis)
    label_ends(end)
    save_png(figure, path)


def _rank_section(out_dir: Path, block_size: int) -> list[str]:
    """Analyses both models of the first seed on held-out text; no paragraphs while they are not there."""
    models = {name: out_dir / "runs" / f"{name}-s1" / "final" for name in ("inheritune", "reference")}
    if not all(path.is_dir() for path in models.values()):
        return []
    tokens = min(_TOKENS, block_size)
    held_out = PackedDataset(out_dir / "data", "val", tokens)
    whole = int((held_out.targets(range(len(held_out))) == tokens).sum())
    (out_dir / "analysis").mkdir(exist_ok=True)
    sentences, other = [], None
    for name, checkpoint in models.items():
        folder = out_dir / "analysis" / name
        measured = analyze(
            AnalyzeArgs(
                str(checkpoint),
                out_dir / "data",
                folder,
                num_sequences=min(_SEQUENCES, whole),
                seq_length=tokens,
                maps="none",
                gradients=False,
                drop_length=0,
                compare=other,
            )
        )
        other = folder
        sentences.append(f"- {name}: {str(measured).splitlines()[0]}")
    return [
        "## Figure 9: attention rank by layer",
        "\n".join(sentences),
        "![attention rank and mass by layer](analysis/reference/rank_and_mass.png)",
    ]
