"""What the comparison of criteria came to: JSON, a Markdown table, a plot."""

import json
import math
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from inheritune_lit.analysis.layer_table import markdown
from inheritune_lit.analysis.result import Analysis
from inheritune_lit.checkpoint.manifest import installed_versions
from inheritune_lit.criteria.args import Criterion, HealingArgs
from inheritune_lit.inherit.layers import layers_text


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


def write_outcome(outcomes: list[Healed], out_dir: Path, analysis: Analysis, n: int, healing: HealingArgs) -> None:
    """Write ``criteria.json``, ``criteria.md`` and ``criteria.png``, and print the table."""
    found = spreads(outcomes)
    text = outcome_text(found, outcomes, analysis, n)
    record = {
        "reference": analysis.model,
        "n": n,
        "healing": asdict(healing),
        "criteria": [asdict(one) for one in found],
        "runs": [asdict(one) for one in outcomes],
        "versions": installed_versions(),
    }
    _put(out_dir / "criteria.json", json.dumps(_without_nan(record), indent=1, allow_nan=False).encode() + b"\n")
    _put(out_dir / "criteria.md", text.encode())
    _plot(out_dir / "criteria.png", found, outcomes)
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
        f"# {n} of {analysis.model['n_layer']} layers of {analysis.model['name']}, by criterion",
        "",
        *markdown(header, rows),
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


def _std(values: list[float]) -> float:
    return stdev(values) if len(values) > 1 else math.nan


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _put(path: Path, content: bytes) -> None:
    aside = path.with_name(f".{path.name}.partial")
    aside.write_bytes(content)
    os.replace(aside, path)


def _plot(path: Path, found: list[Spread], outcomes: list[Healed]) -> None:
    """Healed loss of every seed by criterion, and held-out loss against tokens."""
    import io

    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for number, one in enumerate(found):
        colour = f"C{number}"
        runs = [run for run in outcomes if run.criterion == one.criterion]
        left.scatter([number] * len(runs), [run.loss for run in runs], color=colour, s=18, alpha=0.6)
        left.errorbar(number, one.loss, yerr=None if math.isnan(one.std) else one.std, color=colour, marker="_", ms=18)
        points = list(zip(*(run.curve for run in runs), strict=True))
        tokens, means = [point[0][0] for point in points], [fmean(run[1] for run in point) for point in points]
        right.plot(tokens, means, marker="o", ms=3, lw=1.2, color=colour, label=one.criterion)
    left.set_xticks(range(len(found)), [one.criterion for one in found], rotation=25, ha="right")
    left.set(ylabel="held-out loss (nats a token)", title="Healed: every seed, mean ± std")
    left.grid(axis="y", color="0.9", lw=0.6)
    right.set(xlabel="tokens trained", ylabel="held-out loss, mean over seeds", title="While healing")
    right.legend(fontsize="small")
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110)
    _put(path, stream.getvalue())
