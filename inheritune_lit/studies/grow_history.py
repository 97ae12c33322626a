"""The rounds that are done: a record, a table, a plot."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from inheritune_lit.errors import UserError
from inheritune_lit.evaluation.against_reference import Comparison
from inheritune_lit.io.folders import replace_file, replace_text
from inheritune_lit.studies.grow_plan import RoundPlan
from inheritune_lit.train.metrics import METRICS, read_validations
from inheritune_lit.train.run_folder import FINAL

RECORD, TABLE, PLOT = "grow.json", "grow.md", "grow.png"


@dataclass
class History:
    """What growing has done so far.

    Attributes:
        folder: where it is kept.
        reference: name, layers, parameters, loss and its standard error, and the tokens it was trained on where its
            manifest tells (None otherwise).
        rounds: a record each, in order.
        outcome: "met", or what ended growing before that: "max_layers" or "max_flops"; None while it goes on.
    """

    folder: Path
    reference: dict[str, Any]
    rounds: list[dict[str, Any]]
    outcome: str | None = None

    @classmethod
    def of(cls, folder: Path, reference: dict[str, Any]) -> "History":
        """The history in a folder, an empty one where there is none.

        Raises:
            UserError: the file is damaged.
        """
        path = folder / RECORD
        if not path.is_file():
            return cls(folder, reference, [])
        try:
            return cls(folder, reference, list(json.loads(path.read_text(encoding="utf-8"))["rounds"]))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} cannot be read; remove it, and finished rounds are measured again") from error

    def add(self, plan: RoundPlan, comparison: Comparison, stderr: float) -> None:
        """Take up a round; written by ``save``.

        Args:
            stderr: standard error of the round's loss by itself.
        """
        last = self.rounds[-1] if self.rounds else {"tokens_in_all": 0, "flops_in_all": 0.0}
        self.rounds.append(
            {
                "round": plan.round.number,
                "folder": plan.round.name,
                "n_layer": len(plan.round.layers),
                "layers": list(plan.round.layers),
                "added": plan.round.added,
                "parameters": plan.run.parameters,
                "steps": plan.run.total_steps,
                "tokens": plan.run.tokens,
                "flops": plan.flops,
                "tokens_in_all": last["tokens_in_all"] + plan.run.tokens,
                "flops_in_all": last["flops_in_all"] + plan.flops,
                **asdict(comparison),
                "loss_stderr": stderr,
            }
        )

    def save(self) -> None:
        """Write the record, the table and the plot, each whole or not at all."""
        content = {
            "reference": self.reference,
            "rounds": self.rounds,
            "outcome": self.outcome,
            "final": f"{self.rounds[-1]['folder']}/{FINAL}" if self.outcome else None,
        }
        replace_text(self.folder / RECORD, json.dumps(content, indent=2) + "\n")
        replace_text(self.folder / TABLE, self.table() + "\n" + self.conclusion())
        replace_file(self.folder / PLOT, self._plot)

    def table(self) -> str:
        """The rounds as a Markdown table; losses in nats a token, ± one standard error."""
        ref = self.reference
        lines = [
            "| round | layers | parameters | tokens in all | FLOPs in all | held-out loss "
            "| above the reference (paired) | verdict |",
            "|---|--:|--:|--:|--:|--:|--:|---|",
            f"| reference | {ref['n_layer']} | {ref['parameters']:,} | {_count(ref['tokens'])} | "
            f"| {ref['loss']:.4f} ± {ref['stderr']:.4f} | | |",
        ]
        lines += [
            f"| {row['round']} | {row['n_layer']} | {row['parameters']:,} | {row['tokens_in_all']:,} | "
            f"{row['flops_in_all']:.2e} | {row['loss']:.4f} ± {row['loss_stderr']:.4f} | "
            f"{row['difference']:+.4f} ± {row['stderr']:.4f} | {row['verdict']} |"
            for row in self.rounds
        ]
        return "\n".join(lines) + "\n"

    def conclusion(self) -> str:
        """What came out, in a sentence."""
        row, ref = self.rounds[-1], self.reference
        gap = f"{row['difference']:+.4f} ± {row['stderr']:.4f} nats (paired) against the reference's {ref['loss']:.4f}"
        size = f"{row['n_layer']} of {ref['n_layer']} layers, {row['tokens_in_all']:,} tokens and {gap}"
        if self.outcome == "met":
            return f"Met in round {row['round']}: {size}, within the margin of {row['margin']:g}.\n"
        if self.outcome:
            return f"Not met: round {row['round']} was the last that --{self.outcome} allows, with {size}.\n"
        return f"Goes on after round {row['round']}: {size}.\n"

    def _plot(self, path: Path) -> None:
        """Held-out loss against tokens and against FLOPs, rounds side by side, with the reference's line."""
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt

        figure, panels = plt.subplots(1, 2, figsize=(11, 4.2), constrained_layout=True, sharey=True)
        ref = self.reference
        for axes, unit in zip(panels, ("tokens", "FLOPs"), strict=True):
            label = f"reference, {ref['n_layer']} layers ({ref['loss']:.3f})"
            axes.axhline(ref["loss"], color="gray", linestyle="--", label=label)
            for row in self.rounds:
                # Padding costs FLOPs and is no token, so each axis has a scale of its own.
                scale = 1.0 if unit == "tokens" else row["flops"] / row["tokens"]
                end = row["tokens_in_all"] if unit == "tokens" else row["flops_in_all"]
                begin = end - row["tokens"] * scale
                curve = read_validations(self.folder / row["folder"] / METRICS)
                axes.plot(
                    [begin + scale * each.tokens for each in curve],
                    [each.loss for each in curve],
                    marker="o",
                    markersize=3,
                    label=f"round {row['round']}, {row['n_layer']} layers",
                )
                if row["added"]:
                    axes.axvline(begin, color="lightgray", linewidth=1, zorder=0)
            axes.set(xlabel=f"{unit} of training, all rounds", title=f"Held-out loss against {unit}")
        panels[0].set_ylabel("nats a token")
        panels[0].legend(fontsize="small")
        figure.savefig(path, dpi=130, format="png")
        plt.close(figure)


def _count(tokens: int | None) -> str:
    return "" if tokens is None else f"{tokens:,}"
