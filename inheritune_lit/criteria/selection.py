"""Which layers a criterion takes."""

from inheritune_lit.analysis.result import Analysis
from inheritune_lit.criteria.args import Criterion
from inheritune_lit.errors import UserError
from inheritune_lit.inherit.layers import parse_layers


def select_layers(criterion: Criterion, n: int, analysis: Analysis) -> list[int] | None:
    """Choose n of the reference's layers, counted from 0, in their order.

    Args:
        criterion: "first", "middle" or "last" n layers; "alternate", n layers at equal distances from layer 0 on, every
            other one where n is half; "block-influence", those with the highest (ShortGPT, arXiv 2403.03853, drops the
            lowest); "avg-rank", those with the highest AvgRank (protocol v4 of the paper); "random", none.
        n: at most the depth.
        analysis: of the reference.

    Returns:
        None for "random".

    Raises:
        UserError: the analysis lacks the measure.
    """
    depth = analysis.model["n_layer"]
    if criterion == "random":
        return None
    if criterion == "alternate":
        return [number * depth // n for number in range(n)]
    if criterion == "block-influence":
        if "block_influence" not in analysis.layers:
            raise UserError("criterion block-influence: the analysis lacks that measure; analyze the model again")
        return _highest(analysis.layers["block_influence"]["mean"], n)
    if criterion == "avg-rank":
        return _highest(analysis.protocols["v4"]["avg_rank"], n)
    return parse_layers(f"{criterion}:{n}", depth)


def _highest(values: list[float], n: int) -> list[int]:
    """Where the n highest values are; of equal ones the first."""
    return sorted(sorted(range(len(values)), key=lambda layer: -values[layer])[:n])
