"""What single runs of the comparison came to, and what a criterion came to over the seeds."""

import io
import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, stdev

from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from inheritune_lit.analysis.result import Analysis
from inheritune_lit.inherit.layers import layers_text
from inheritune_lit.io.folders import replace_file, replace_text
from inheritune_lit.io.manifest import installed_versions
from inheritune_lit.io.records import without_nan
from inheritune_lit.io.tables import markdown_table
from inheritune_lit.studies.ablate_args import Criterion, HealingArgs


@dataclass(frozen=True)
class Healed:
    """One run.

    Attributes:
        criterion: what its layers were chosen by.
        layers: of the reference, None for fresh weights.
        seed: of the data order.
        untrained: held-out loss before training in nats a token, NaN where it was not measured.
        loss, stderr: held-out loss after training, and its standard error over the held-out blocks.
        tokens: trained on.
        curve: held-out loss by tokens.
    """

    criterion: Criterion
    layers: list[int] | None
    seed: int
    untrained: float
    loss: float
    stderr: float
    tokens: int
    curve: list[tuple[int, float]]

    def by(self, criterion: Criterion) -> "Healed":
        """The same run for another criterion that chose the same layers."""
        return replace(self, criterion=criterion)


@dataclass(frozen=True)
class Spread:
    """A criterion over all seeds: nats a token.

    Attributes:
        untrained, loss: means over the seeds.
        std: standard deviation of the healed loss over the seeds, NaN for one.
        low, high: the lowest and highest healed loss.
        difference, difference_std: to the criterion listed first, seed by seed: mean and standard deviation.
        lower_in: seeds in which the loss is lower than that one's.
        same_as: a criterion before it that chose the same layers.
    """

    criterion: Criterion
    layers: list[int] | None
    untrained: float
    loss: float
    std: float
    low: float
    high: float
    difference: float
    difference_std: float
    lower_in: int
    same_as: Criterion | None


def spreads(outcomes: list[Healed]) -> list[Spread]:
    """Put the seeds of each criterion together, in the order of the criteria."""
    by_criterion: dict[Criterion, dict[int, Healed]] = {}
    for one in outcomes:
        by_criterion.setdefault(one.criterion, {})[one.seed] = one
    first = next(iter(by_criterion.values()))
    found: list[Spread] = []
    for criterion, runs in by_criterion.items():
        losses = [run.loss for run in runs.values()]
        differences = [run.loss - first[seed].loss for seed, run in runs.items()]
        layers = next(iter(runs.values())).layers
        found.append(
            Spread(
                criterion=criterion,
                layers=layers,
                untrained=fmean(run.untrained for run in runs.values()),
                loss=fmean(losses),
                std=_std(losses),
                low=min(losses),
                high=max(losses),
                difference=fmean(differences),
                difference_std=_std(differences),
                lower_in=sum(difference < 0 for difference in differences),
                same_as=next((one.criterion for one in found if layers is not None and one.layers == layers), None),
            )
        )
    return found


def _std(values: list[float]) -> float:
    return stdev(values) if len(values) > 1 else math.nan


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


def write_outcome(outcomes: list[Healed], out_dir: Path, analysis: Analysis, n: int, healing: HealingArgs) -> None:
    """Write ``criteria.json``, ``criteria.md`` and ``criteria.png``, and print the table."""
    found = spreads(outcomes)
    text = outcome_text(found, outcomes, analysis, n)
    record = {
        "reference": asdict(analysis.model),
        "n": n,
        "healing": asdict(healing),
        "criteria": [asdict(one) for one in found],
        "runs": [asdict(one) for one in outcomes],
        "versions": installed_versions(),
    }
    replace_text(out_dir / "criteria.json", json.dumps(without_nan(record), indent=1, allow_nan=False) + "\n")
    replace_text(out_dir / "criteria.md", text)
    figure = outcome_png(found, outcomes)
    replace_file(out_dir / "criteria.png", lambda aside: aside.write_bytes(figure))
    print(f"\n{text}\nwrote {out_dir}/criteria.json, .md and .png")


def outcome_text(found: list[Spread], outcomes: list[Healed], analysis: Analysis, n: int) -> str:
    """The table and what it says, as Markdown."""
    seeds = len({one.seed for one in outcomes})
    first, best = found[0], min(found, key=lambda one: one.loss)
    rows = [
        [
            one.criterion,
            "fresh weights" if one.layers is None else layers_text(one.layers),
            _loss(one.untrained),
            f"{_loss(one.loss)} ± {_loss(one.std)}",
            f"{_loss(one.low)} to {_loss(one.high)}",
            "" if one is first else f"{one.difference:+.4f} ± {_loss(one.difference_std)}",
            "" if one is first else f"{one.lower_in} of {seeds}",
        ]
        for one in found
    ]
    header = ["criterion", "layers", "untrained", "healed", "range", f"minus {first.criterion}", "lower in"]
    shared = [f"{one.criterion} chose the same layers as {one.same_as}" for one in found if one.same_as]
    noise = fmean(one.stderr for one in outcomes)
    lines = [
        f"# {n} of {analysis.model.n_layer} layers of {analysis.model.name}, by criterion",
        "",
        markdown_table(header, rows),
        "",
        f"Held-out loss in nats a token after {outcomes[0].tokens:,} tokens; mean ± standard deviation over {seeds} "
        f"seeds of the data order, the same for every criterion. Differences are taken seed by seed. The held-out text "
        f"itself adds a standard error of {noise:.4f}, which all criteria share.",
        *([f"{'; '.join(shared)}: one run counts for both."] if shared else []),
        _verdict(best, first, seeds),
    ]
    return "\n".join(lines) + "\n"


def _verdict(best: Spread, first: Spread, seeds: int) -> str:
    if best.loss == first.loss:
        return f"No criterion has a lower mean than {first.criterion}."
    return (
        f"The lowest mean has {best.criterion}: {-best.difference:.4f} below {first.criterion}, "
        f"lower in {best.lower_in} of {seeds} seeds."
    )


def _loss(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}"
