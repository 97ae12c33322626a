"""The rounds of a growth that are done: a record, a table, a figure."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from inheritune_lit import Comparison, ReferenceModel, count_parameters, read_run, tensor_shapes
from inheritune_lit.errors import UserError
from inheritune_lit.io.folders import replace_text
from inheritune_lit.io.manifest import read_manifest
from inheritune_lit.io.plotting import draw_curve, draw_level, engineering_ticks, label_ends, new_figure, save_png
from inheritune_lit.io.tables import markdown_table
from inheritune_lit.studies.grow_plan import RoundPlan

RECORD, TABLE, FIGURE = "grow.json", "grow.md", "grow.png"


@dataclass(frozen=True)
class GrownReference:
    """The reference: losses in nats per token, and the tokens it was trained on where its manifest says so."""

    name: str
    n_layer: int
    parameters: int
    loss: float
    stderr: float
    tokens: int | None

    @classmethod
    def of(cls, reference: ReferenceModel, loss: float, stderr: float) -> "GrownReference":
        """Describes a reference with its held-out loss."""
        tokens = (read_manifest(reference.folder) or {}).get("tokens")
        parameters = count_parameters(tensor_shapes(reference.config, reference.tied))
        return cls(reference.name, reference.config.n_layer, parameters, loss, stderr, tokens)


@dataclass(frozen=True)
class GrownRound:
    """A round that is done. ``tokens_in_all`` and ``flops_in_all`` count the rounds before too; see ``Comparison``."""

    round: int
    folder: str
    n_layer: int
    layers: list[int]
    added: int
    parameters: int
    steps: int
    tokens: int
    flops: float
    tokens_in_all: int
    flops_in_all: float
    loss: float
    reference: float
    difference: float
    stderr: float
    margin: float
    verdict: str
    loss_stderr: float

    @classmethod
    def of(cls, plan: RoundPlan, comparison: Comparison, loss_stderr: float, growth: "Growth") -> "GrownRound":
        """Describes the round that comes after those of a growth; ``loss_stderr`` is that of its loss by itself."""
        last = growth.rounds[-1] if growth.rounds else None
        return cls(
            round=plan.round.number,
            folder=plan.round.name,
            n_layer=len(plan.round.layers),
            layers=list(plan.round.layers),
            added=plan.round.added,
            parameters=plan.run.parameters,
            steps=plan.run.total_steps,
            tokens=plan.run.tokens,
            flops=plan.flops,
            tokens_in_all=(last.tokens_in_all if last else 0) + plan.run.tokens,
            flops_in_all=(last.flops_in_all if last else 0.0) + plan.flops,
            **asdict(comparison),
            loss_stderr=loss_stderr,
        )


@dataclass
class Growth:
    """``grow.json``.

    Attributes:
        outcome: "met", or what ended growing before that: "max_layers" or "max_flops"; None while it is going on.
        final: the last round's checkpoint in the folder of the growth; None while it is going on.
    """

    reference: GrownReference
    rounds: list[GrownRound]
    outcome: str | None = None
    final: str | None = None

    def save(self, folder: Path) -> None:
        """Writes the record, the table and the figure, each whole or not at all."""
        replace_text(folder / RECORD, json.dumps(asdict(self), indent=2) + "\n")
        replace_text(folder / TABLE, self.table() + "\n" + self.conclusion())
        self._draw(folder)

    def table(self) -> str:
        """The rounds as a Markdown table; losses in nats per token, ± one standard error."""
        ref = self.reference
        tokens = "" if ref.tokens is None else f"{ref.tokens:,}"
        sizes = [str(ref.n_layer), f"{ref.parameters:,}", tokens, ""]
        rows = [["reference", *sizes, f"{ref.loss:.4f} ± {ref.stderr:.4f}", "", ""]]
        for row in self.rounds:
            sizes = [str(row.n_layer), f"{row.parameters:,}", f"{row.tokens_in_all:,}", f"{row.flops_in_all:.2e}"]
            loss, gap = f"{row.loss:.4f} ± {row.loss_stderr:.4f}", f"{row.difference:+.4f} ± {row.stderr:.4f}"
            rows.append([str(row.round), *sizes, loss, gap, row.verdict])
        sizes = ["layers", "parameters", "tokens in all", "FLOPs in all"]
        header = ["round", *sizes, "held-out loss", "above the reference (paired)", "verdict"]
        return markdown_table(header, rows, left=(0, 7)) + "\n"

    def conclusion(self) -> str:
        """What came out, in a sentence."""
        row, ref = self.rounds[-1], self.reference
        gap = f"{row.difference:+.4f} ± {row.stderr:.4f} nats (paired) against the reference's {ref.loss:.4f}"
        size = f"{row.n_layer} of {ref.n_layer} layers, {row.tokens_in_all:,} tokens and {gap}"
        if self.outcome == "met":
            return f"Met in round {row.round}: {size}, within the margin of {row.margin:g}.\n"
        if self.outcome:
            return f"Not met: round {row.round} was the last that --{self.outcome} allows, with {size}.\n"
        return f"Continues after round {row.round}: {size}.\n"

    def _draw(self, folder: Path) -> None:
        """Held-out loss against tokens and against FLOPs, round after round, with the reference's line."""
        figure, panels = new_figure(2, sharey=True)
        for axes, unit in zip(panels, ("tokens", "FLOPs"), strict=True):
            draw_level(axes, self.reference.loss, f"reference, {self.reference.n_layer} layers")
            for number, row in enumerate(self.rounds):
                # Padding costs FLOPs and is not counted as tokens, so each axis has a scale of its own.
                scale = 1.0 if unit == "tokens" else row.flops / row.tokens
                begin = (row.tokens_in_all if unit == "tokens" else row.flops_in_all) - row.tokens * scale
                run = read_run(folder / row.folder)
                curve = run.curve if run else []
                tokens, losses = [begin + scale * count for count, _ in curve], [loss for _, loss in curve]
                draw_curve(axes, number, tokens, losses, f"round {row.round}, {row.n_layer} layers")
                if row.added:
                    axes.axvline(begin, color="lightgray", linewidth=1, zorder=0)
            axes.set(xlabel=f"{unit} of training, all rounds", title=f"Held-out loss against {unit}")
            engineering_ticks(axes.xaxis)
        panels[0].set_ylabel("nats per token")
        label_ends(panels[1])
        save_png(figure, folder / FIGURE)


def read_growth(folder: Path, reference: GrownReference) -> Growth:
    """Reads the rounds that are done; none where there is no record.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / RECORD
    if not path.is_file():
        return Growth(reference, [])
    try:
        rounds: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["rounds"]
        known = {field.name for field in fields(GrownRound)}
        return Growth(reference, [GrownRound(**{name: row[name] for name in known}) for row in rounds])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read; remove it, and finished rounds are measured again") from error


@dataclass(frozen=True)
class GrowResult:
    """Outcome of ``grow``.

    Attributes:
        growth: the rounds so far; None for a dry run. Its ``outcome`` is None where growing was stopped.
        stopped: what ``pretrain`` says where it was stopped.
    """

    out_dir: Path
    growth: Growth | None = None
    stopped: str = ""

    def __str__(self) -> str:
        if self.growth is None or self.growth.final is None:
            return self.stopped
        final, files = self.out_dir / self.growth.final, f"{self.out_dir}/{RECORD}, {TABLE} and {FIGURE}"
        return f"{self.growth.table()}\n{self.growth.conclusion()}wrote {final} and {files}"
