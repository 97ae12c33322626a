"""The comparison of criteria as a figure."""

import io
import math
from statistics import fmean

from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from inheritune_lit.criteria.healed import Healed, Spread


def outcome_png(found: list[Spread], outcomes: list[Healed]) -> bytes:
    """Healed loss of every seed by criterion, its difference to the first criterion, and loss against tokens."""
    figure = Figure(figsize=(16, 4.6), layout="constrained")
    healed, difference, curves = figure.subplots(1, 3)
    first = {run.seed: run.loss for run in outcomes if run.criterion == found[0].criterion}
    for number, one in enumerate(found):
        colour = f"C{number}"
        runs = [run for run in outcomes if run.criterion == one.criterion]
        healed.scatter([number] * len(runs), [run.loss for run in runs], color=colour, s=18, alpha=0.6)
        healed.errorbar(
            number, one.loss, yerr=None if math.isnan(one.std) else one.std, color=colour, marker="_", ms=18
        )
        gaps = [run.loss - first[run.seed] for run in runs]
        difference.scatter([number] * len(runs), gaps, color=colour, s=18, alpha=0.6)
        points = list(zip(*(run.curve for run in runs), strict=True))
        tokens, means = [point[0][0] for point in points], [fmean(run[1] for run in point) for point in points]
        curves.plot(tokens, means, marker="o", ms=3, lw=1.2, color=colour, label=one.criterion)
    for axes in (healed, difference):
        axes.set_xticks(range(len(found)), [one.criterion for one in found], rotation=25, ha="right")
        axes.grid(axis="y", color="0.9", lw=0.6)
    healed.set(ylabel="held-out loss (nats a token)", title="After healing: every seed, mean ± std")
    # Some criteria may be behind by nats where others differ by hundredths.
    difference.set_yscale("symlog", linthresh=0.01)
    difference.yaxis.set_major_formatter("{x:g}")
    difference.margins(y=0.1)
    difference.axhline(0, color="0.4", lw=0.8)
    difference.set(ylabel="nats a token, linear below 0.01", title=f"Difference to {found[0].criterion}, seed by seed")
    curves.xaxis.set_major_formatter(EngFormatter(sep=""))
    curves.set(xlabel="tokens trained", ylabel="held-out loss, mean over seeds", title="While healing")
    figure.legend(*curves.get_legend_handles_labels(), loc="outside right center", fontsize="small")
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=100)
    return stream.getvalue()
