"""Attention rank of the reference and of the small model that began with its layers (the paper's Figure 9)."""

import math
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt

from inheritune_lit.analysis.analyze import analyze_model
from inheritune_lit.analysis.args import AnalyzeArgs
from inheritune_lit.analysis.page import sentence
from inheritune_lit.analysis.result import load_analysis
from inheritune_lit.data.packed import PackedDataset
from inheritune_lit.io.folders import replace_text
from inheritune_lit.studies.replication_grid import FIGURE_1, FIGURE_3, TABLE_1, TABLE_2, TABLE_3, Scale, folder_of
from inheritune_lit.studies.replication_results import Summary, Trained, paired_difference, summarise
from inheritune_lit.train.run_folder import FINAL

_SEQUENCES, _TOKENS = 100, 100  # the paper's, Section 2


def rank_section(out_dir: Path, scale: Scale) -> list[str]:
    """Analyse both models of the first seed on held-out text; paragraphs for the page, none while they are not there.

    Args:
        out_dir: of the replication; analyses that are there are kept.
        scale: sizes.
    """
    models = {name: folder_of(out_dir, name, seed=1) / FINAL for name in ("inheritune", "reference")}
    if not all(path.is_dir() for path in models.values()):
        return []
    tokens = min(_TOKENS, scale.block_size)
    held_out = PackedDataset(out_dir / "data", "val", tokens)
    whole = int((held_out.targets(range(len(held_out))) == tokens).sum())
    quick = {"num_sequences": min(_SEQUENCES, whole), "seq_length": tokens}
    quick |= {"maps": "none", "gradients": False, "drop_length": 0}
    folders = {name: out_dir / "analysis" / name for name in models}
    (out_dir / "analysis").mkdir(exist_ok=True)
    for name, folder in folders.items():
        other = None if name == "inheritune" else folders["inheritune"]
        analyze_model(AnalyzeArgs(str(models[name]), out_dir / "data", folder, **quick, compare=other))
    told = [f"- {name}: {sentence(load_analysis(folder))}" for name, folder in folders.items()]
    return [
        "## Figure 9: attention rank by layer",
        "\n".join(told),
        "![attention rank and mass by layer](analysis/reference/rank_and_mass.png)",
    ]


matplotlib.use("Agg")


PAGE = "replication.md"
_OURS = "Inheritune"
_CURVES = {  # the paper's figure of each comparison's curves
    TABLE_1: ("figure-5.png", "Figure 5: training curves against training from scratch"),
    TABLE_2: ("figure-6.png", "Figure 6: training curves of other ways to begin"),
    TABLE_3: ("figure-7.png", "Figure 7: training curves of parts of the layers"),
    FIGURE_1: ("figure-1.png", "Figures 1c and 1f: training curves by the layers to begin with"),
    FIGURE_3: ("figure-3.png", "Figure 3: training curves against distillation"),
}


def write_page(out_dir: Path, name: str, scale: Scale, results: list[Trained]) -> None:
    """Write ``replication.md`` and a figure a comparison; both models of Figure 9 are analysed for it.

    Args:
        name: of the scale.
        results: of all models that are done.
    """
    tokens = scale.steps * scale.batch * scale.block_size
    parts = [
        f"# Replication at the scale `{name}`",
        "GPT-2 models as the paper's (no biases, learned positions, tied head, attention scaled by the layer's number):"
        f" {scale.n_layer} layers of width {scale.n_embd} for the reference, {scale.variant} for the small model, "
        f"{scale.block_size} tokens a sample, a vocabulary of {scale.vocab_size:,}. T is {scale.steps} steps of "
        f"{scale.batch} samples, {tokens:,} tokens. Losses are held-out, in nats a token, on the same samples for all: "
        "mean over seeds ± standard deviation over seeds (one seed: ± standard error over samples); differences are "
        "seed by seed. Steps and tokens are those of the training itself, as in the paper: what a model begins with "
        "(the reference's T steps, or a teacher's) is not counted.",
    ]
    shown: set[str] = set()
    for group in (TABLE_1, TABLE_2, TABLE_3, FIGURE_3, FIGURE_1):
        summaries = summarise(results, group)
        titles = {each.title for each in summaries}
        if titles <= shown:  # of what is compared here nothing has been trained
            continue
        shown |= titles
        file, title = _CURVES[group]
        _plot(out_dir / file, summaries)
        parts += [f"## {group}", _table(summaries), f"![{title}]({file})"]
    parts += rank_section(out_dir, scale)
    replace_text(out_dir / PAGE, "\n\n".join(parts) + "\n")


def _table(summaries: list[Summary]) -> str:
    ours = next((each for each in summaries if each.title == _OURS), summaries[0])
    lines = [
        f"| model | layers | width | parameters | steps | tokens | seeds | held-out loss | minus {ours.title}'s |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for each in summaries:
        run = each.runs[0]
        noise = run.val_stderr if math.isnan(each.std) else each.std
        cells = [
            each.title,
            str(run.n_layer),
            str(run.n_embd),
            f"{run.parameters:,}",
            f"{run.steps:,}",
            f"{run.tokens:,}",
            str(len(each.runs)),
            f"{each.loss:.3f} ± {noise:.3f}",
            "" if each is ours else _gap(each, ours),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _gap(each: Summary, ours: Summary) -> str:
    value, spread, seeds = paired_difference(each, ours)
    if not seeds:
        return ""
    return f"{value:+.3f}" + ("" if math.isnan(spread) else f" ± {spread:.3f}")


def _plot(path: Path, summaries: list[Summary]) -> None:
    figure, (whole, end) = plt.subplots(1, 2, figsize=(11, 4.2), constrained_layout=True)
    lowest = min(each.loss for each in summaries)
    for number, each in enumerate(summaries):
        for run in each.runs:
            tokens, losses = zip(*run.curve, strict=True)
            label = each.title if run is each.runs[0] else None
            for axes in (whole, end):
                axes.plot(tokens, losses, color=f"C{number}", alpha=0.8, linewidth=1.2, label=label)
    # The last part decides, and is flat beside the first.
    highest = max(each.loss for each in summaries)
    end.set_ylim(lowest - 0.02, highest + max(0.3, 0.5 * (highest - lowest)))
    whole.set(xlabel="tokens trained", ylabel="held-out loss (nats a token)", title="from the start")
    end.set(xlabel="tokens trained", title="towards the end")
    whole.legend(fontsize="small")
    figure.savefig(path, dpi=130)
    plt.close(figure)
