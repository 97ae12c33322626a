"""What the comparison of criteria came to: JSON, a Markdown table, a plot."""

import json
import math
from dataclasses import asdict
from pathlib import Path
from statistics import fmean

from inheritune_lit.analysis.layer_table import markdown
from inheritune_lit.analysis.result import Analysis, without_nan
from inheritune_lit.checkpoint.manifest import installed_versions
from inheritune_lit.checkpoint.output import replace_file, replace_text
from inheritune_lit.criteria.args import HealingArgs
from inheritune_lit.criteria.healed import Healed, Spread, spreads
from inheritune_lit.criteria.plot import outcome_png
from inheritune_lit.inherit.layers import layers_text


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
