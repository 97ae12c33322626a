"""What single runs of the comparison came to, and what a criterion came to over the seeds."""

import math
from dataclasses import dataclass, replace
from statistics import fmean, stdev

from inheritune_lit.criteria.args import Criterion


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
