"""What experiments came to over their seeds: a summary for tables, and curves."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from matplotlib.axes import Axes

from inheritune_lit.io.plotting import draw_curve
from inheritune_lit.studies.runner import ExperimentResult


@dataclass(frozen=True)
class SeedSummary:
    """Experiments of one title over all seeds: losses in nats per token.

    Attributes:
        seeds: of the experiments.
        untrained: mean held-out loss before training, NaN where it was not measured.
        loss: mean held-out loss after training.
        std: sample standard deviation of the loss over the seeds, NaN for one.
        low, high: the lowest and the highest loss.
        stderr: mean standard error of the single losses over the held-out samples.
        difference, difference_std: loss minus the baseline's, seed by seed: mean and standard deviation.
        paired: seeds that the baseline has too.
        lower_in: seeds in which the loss is lower than the baseline's.
    """

    title: str
    seeds: list[int]
    untrained: float
    loss: float
    std: float
    low: float
    high: float
    stderr: float
    difference: float
    difference_std: float
    paired: int
    lower_in: int


def by_title(results: Sequence[ExperimentResult], group: str | None = None) -> dict[str, list[ExperimentResult]]:
    """The experiments of a group, all when None, by title, in their order."""
    found: dict[str, list[ExperimentResult]] = {}
    for each in results:
        if group is None or group in each.groups:
            found.setdefault(each.title, []).append(each)
    return found


def summarize(runs: Sequence[ExperimentResult], baseline: Sequence[ExperimentResult]) -> SeedSummary:
    """Puts the seeds of one title together, and compares them with another title's."""
    losses = [run.val_loss for run in runs]
    theirs = {run.seed: run.val_loss for run in baseline}
    differences = [run.val_loss - theirs[run.seed] for run in runs if run.seed in theirs]
    return SeedSummary(
        title=runs[0].title,
        seeds=[run.seed for run in runs],
        untrained=fmean(math.nan if run.untrained is None else run.untrained for run in runs),
        loss=fmean(losses),
        std=_std(losses),
        low=min(losses),
        high=max(losses),
        stderr=fmean(run.val_stderr for run in runs),
        difference=fmean(differences) if differences else math.nan,
        difference_std=_std(differences),
        paired=len(differences),
        lower_in=sum(difference < 0 for difference in differences),
    )


def _std(values: list[float]) -> float:
    return stdev(values) if len(values) > 1 else math.nan


def draw_mean_curve(axes: Axes, number: int, runs: Sequence[ExperimentResult]) -> None:
    """Draws held-out loss against tokens, the mean over the seeds, in the style of the number."""
    points = list(zip(*(run.curve for run in runs), strict=True))
    tokens, losses = [point[0][0] for point in points], [fmean(loss for _, loss in point) for point in points]
    draw_curve(axes, number, tokens, losses, runs[0].title)
