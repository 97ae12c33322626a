"""Which layers a criterion takes."""

import math
import sys
from dataclasses import dataclass
from pathlib import Path

from inheritune_lit.analysis.result import Analysis
from inheritune_lit.errors import UserError
from inheritune_lit.inherit.args import SliceArgs
from inheritune_lit.inherit.layers import layers_text, parse_layers
from inheritune_lit.inherit.slice import slice_model
from inheritune_lit.studies.ablate_args import Criterion, HealingArgs
from inheritune_lit.studies.ablate_outcome import Healed, write_outcome
from inheritune_lit.train.args import PretrainArgs
from inheritune_lit.train.metrics import METRICS, read_validations
from inheritune_lit.train.pretrain import pretrain


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
    depth = analysis.model.n_layer
    if criterion == "random":
        return None
    if criterion == "alternate":
        return [number * depth // n for number in range(n)]
    if criterion == "block-influence":
        if "block_influence" not in analysis.layers:
            raise UserError("criterion block-influence: the analysis lacks that measure; analyze the model again")
        return _highest(analysis.layers["block_influence"].mean, n)
    if criterion == "avg-rank":
        return _highest(analysis.protocols.v4.avg_rank, n)
    return parse_layers(f"{criterion}:{n}", depth)


def _highest(values: list[float], n: int) -> list[int]:
    """Where the n highest values are; of equal ones the first."""
    return sorted(sorted(range(len(values)), key=lambda layer: -values[layer])[:n])


@dataclass(frozen=True)
class _Start:
    """A slice to be healed: None where its weights are fresh."""

    layers: list[int] | None
    seed: int

    @property
    def name(self) -> str:
        if self.layers is None:
            return f"random-seed{self.seed}"
        return "layers-" + layers_text(self.layers).replace(",", "_")


def compare_criteria(ref: str, analysis: Analysis, data: Path, out_dir: Path, healing: HealingArgs) -> list[Healed]:
    """Slice a reference by every criterion, train each slice with every seed, and compare what they score.

    Everything is a folder below ``out_dir``: ``slices/``, ``runs/``, and at the end ``criteria.json``, ``criteria.md``
    and ``criteria.png``. What is there is kept: the same call continues after a kill. Criteria that choose the same
    layers share their runs.

    Args:
        ref: the reference, as ``inheritune slice`` takes it.
        analysis: of this reference.
        data: packed data to train and validate on.
        out_dir: folder for everything.
        healing: n, criteria, seeds, and the training of each run.

    Returns:
        One entry a criterion and seed.

    Raises:
        UserError: bad input, or ``out_dir`` holds runs of other settings.
        SystemExit: stopped by SIGTERM, after saving.
    """
    n = layers_to_keep(analysis.model.n_layer, healing)
    chosen = {criterion: select_layers(criterion, n, analysis) for criterion in healing.criteria}
    _print_plan(chosen, n, analysis, healing)
    healed: dict[tuple[str, int], Healed] = {}
    for seed in healing.seeds:
        for criterion, layers in chosen.items():
            start = _Start(layers, seed)
            same = next((one for one in healed.values() if one.layers == layers and one.seed == seed), None)
            if same is not None and layers is not None:
                healed[criterion, seed] = same.by(criterion)
                continue
            print(f"criteria: {criterion}, seed {seed}", file=sys.stderr, flush=True)
            healed[criterion, seed] = _heal(ref, start, criterion, n, data, out_dir, healing)
    outcomes = [healed[criterion, seed] for criterion in chosen for seed in healing.seeds]
    write_outcome(outcomes, out_dir, analysis, n, healing)
    return outcomes


def _heal(
    ref: str, start: _Start, criterion: Criterion, n: int, data: Path, out_dir: Path, healing: HealingArgs
) -> Healed:
    initial = out_dir / "slices" / start.name
    if not initial.exists():
        if start.layers is None:
            slice_model(SliceArgs(ref, n=n, out_dir=initial, init="random", seed=start.seed))
        else:
            slice_model(SliceArgs(ref, layers=layers_text(start.layers), out_dir=initial))
    run_dir = out_dir / "runs" / (start.name if start.layers is None else f"{start.name}-seed{start.seed}")
    result = pretrain(
        PretrainArgs(
            initial,
            data,
            run_dir,
            train=healing.train,
            eval=healing.eval,
            optimizer=healing.optimizer,
            precision=healing.precision,
            seed=start.seed,
        )
    )
    if result.final is None:  # SIGTERM: what is done is kept, and the same command goes on from there
        raise SystemExit(0)
    assert result.val_loss is not None and result.val_stderr is not None
    curve = [(each.tokens, each.loss) for each in read_validations(run_dir / METRICS)]
    untrained = curve[0][1] if curve and curve[0][0] == 0 else math.nan
    return Healed(
        criterion, start.layers, start.seed, untrained, result.val_loss, result.val_stderr, result.tokens, curve
    )


def layers_to_keep(depth: int, healing: HealingArgs) -> int:
    """The n of all slices.

    Raises:
        UserError: arguments out of range.
    """
    n = max(1, depth // 2) if healing.n is None else healing.n
    if not 1 <= n <= depth:
        raise UserError(f"--healing.n is {n}; give 1 to {depth}, the reference's layers")
    for name, values in (("seeds", healing.seeds), ("criteria", healing.criteria)):
        if not values or len(set(values)) < len(values):
            raise UserError(f"--healing.{name} is {values}; give one or more, each once")
    return n


def _print_plan(chosen: dict[Criterion, list[int] | None], n: int, analysis: Analysis, healing: HealingArgs) -> None:
    width = max(map(len, chosen))
    different = {layers_text(layers) if layers is not None else "random" for layers in chosen.values()}
    print(f"criteria: {n} of {analysis.model.n_layer} layers of {analysis.model.name}", file=sys.stderr)
    for criterion, layers in chosen.items():
        print(f"  {criterion:<{width}}  {'fresh weights' if layers is None else layers_text(layers)}", file=sys.stderr)
    seeds = len(healing.seeds)
    print(f"  {len(different)} different x {seeds} seeds = {len(different) * seeds} runs", file=sys.stderr, flush=True)
