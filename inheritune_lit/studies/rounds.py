"""The rounds of a growth: planned with what they cost at most, and done with what came out."""

from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import inheritune_lit as lit
from inheritune_lit.errors import UserError
from inheritune_lit.io.folders import replace_text
from inheritune_lit.io.manifest import sha256_file
from inheritune_lit.io.plotting import draw_curve, draw_level, engineering_ticks, label_ends, new_figure, save_png
from inheritune_lit.io.records import read_record, write_record
from inheritune_lit.io.tables import markdown_table
from inheritune_lit.studies.args import GrowArgs

RECORD, TABLE, FIGURE = "grow.json", "grow.md", "grow.png"


@dataclass(frozen=True)
class Round:
    """One round, numbered from 1: the reference's layer behind each layer of the model, the last ``added`` new."""

    number: int
    layers: tuple[int, ...]
    added: int

    @property
    def name(self) -> str:
        """Name of its run folder."""
        return f"round-{self.number:02}-{len(self.layers)}l"


def plan_layers(args: GrowArgs, depth: int, start: tuple[int, ...] | None = None) -> list[Round]:
    """Plans all rounds that there can be, Algorithm 1 of the paper.

    Args:
        depth: the reference's number of layers.
        start: the reference's layer behind each layer of a checkpoint to start from; its first ``args.n`` when None.

    Raises:
        UserError: arguments that the reference's depth rules out.
    """
    if start is None:
        n = max(1, depth // 2) if args.n is None else args.n
        if not 1 <= n <= depth:
            raise UserError(f"--n is {n}; the reference has {depth} layers, give 1 to {depth}")
        start = tuple(range(n))
    limit = depth if args.max_layers is None else args.max_layers
    if not len(start) <= limit <= depth:
        raise UserError(
            f"--max_layers is {limit}; the start has {len(start)} layers and the reference {depth}, beyond which there "
            f"is nothing to grow: give {len(start)} to {depth}"
        )
    count, listed = args.grow_by, _listed_layers(args.new_layers, depth)
    rounds, layers = [Round(1, start, 0)], start
    while len(layers) + count <= limit:
        if listed is not None:
            new = listed[len(layers) - len(start) :][:count]
        else:
            new = layers[-count:] if args.new_layers == "own" else tuple(range(len(layers), len(layers) + count))
        if len(new) < count:
            break
        layers += new
        rounds.append(Round(len(rounds) + 1, layers, count))
    if len(rounds) == 1 and args.max_layers != len(start):
        end = f"--max_layers {limit}" if limit < depth else f"the reference's {depth} layers"
        if listed is not None and len(listed) < count:
            end = f"--new_layers {args.new_layers}, which are {len(listed)}"
        elif args.new_layers == "own" and limit == depth:
            end = f"its own layers or the reference's {depth}"
        raise UserError(
            f"--grow_by {count} on {len(start)} layers grows past {end}; give a smaller --grow_by, a smaller start, or "
            f"--max_layers {len(start)} to train without growing"
        )
    return rounds


def _listed_layers(new_layers: str, depth: int) -> tuple[int, ...] | None:
    """The reference's layers that are listed, to be taken in turn; None where they are not."""
    if new_layers in ("next", "own"):
        return None
    try:
        return tuple(lit.parse_layers(new_layers, depth))
    except UserError as error:
        # The syntax is that of `inheritune slice`, whose flag has another name.
        message = str(error).replace("--layers", "--new_layers", 1)
        raise UserError(f"{message}; or next, or own") from error


@dataclass(frozen=True)
class RoundPlan(Round):
    """A round with the run that trains it."""

    run: lit.RunPlan

    @property
    def flops(self) -> float:
        """FLOPs of its training."""
        return self.run.total_steps * self.run.tokens_per_step * self.run.flops_per_token


@dataclass(frozen=True)
class GrowthPlan:
    """What is known before anything is spent; as text, the plan that people read.

    Attributes:
        rounds: those that there can be.
        limit: what ends growing after them: "max_layers" or "max_flops".
        settings: everything that changes the outcome, the reference's identity aside.
        evaluator: measures the held-out losses that decide.
    """

    args: GrowArgs
    reference: lit.ReferenceModel
    rounds: list[RoundPlan]
    limit: str
    attn_scale: Literal["position", "keep"]
    settings: dict[str, Any]
    evaluator: lit.HeldOutEvaluator

    def __str__(self) -> str:
        reference, args, fabric = self.reference, self.args, self.evaluator.fabric
        peak = self.rounds[0].run.peak_flops

        def cost(flops: float) -> str:
            if peak is None:
                return f"{flops:.2e} FLOPs"
            hours = flops / (lit.ASSUMED_MFU * peak * fabric.world_size) / 3600
            return f"{flops:.2e} FLOPs, {hours:,.1f} h at {lit.ASSUMED_MFU:.0%} of the peak"

        kinds = {"next": "the reference's next", "own": "copies of the model's own last"}
        lines = [
            f"grow from {reference.name}: {reference.config.n_layer} layers, width {reference.config.n_embd}; new "
            f"layers: {kinds.get(args.new_layers, f'{args.new_layers} of the reference')}",
            f"until the loss on {self.evaluator.blocks:,} validation samples is at most {args.margin:g} nats above the "
            f"reference's with 95% confidence (difference + {lit.Z} paired standard errors)",
        ]
        for one in self.rounds:
            new = f", new: {lit.layers_text(list(one.layers[-one.added :]))}" if one.added else ""
            lines.append(
                f"round {one.number}: {len(one.layers)} layers{new}, {one.run.parameters:,} parameters, "
                f"{one.run.tokens:,} tokens, {cost(one.flops)}"
            )
        spent = cost(sum(one.flops for one in self.rounds))
        return "\n     ".join([*lines, f"at most {spent} on {lit.machine_name(fabric)}"])


def plan_growth(args: GrowArgs, resolved: lit.ResolvedReference) -> GrowthPlan:
    """Checks everything that can be checked without computing, and plans the run of every round.

    Raises:
        UserError: the arguments do not fit each other, the reference, the data or the machine.
    """
    reference, initial = resolved.reference, args.initial_checkpoint_dir
    attn_scale, start = lit.attn_scale_of(initial), lit.layers_of(initial) if initial else None
    if initial and start:
        lit.check_start(initial, start, reference, attn_scale)
    rounds = plan_layers(args, reference.config.n_layer, start)
    lit.check_fits_model(args.data, reference.folder, reference.config.padded_vocab_size)
    length = lit.sample_length(args.train, reference.config)
    train, val = (lit.PackedDataset(args.data, split, length, args.documents) for split in ("train", "val"))
    mixture = lit.make_mixture(train.domains, args.mixture.weights)
    if not 0 <= args.seed <= 2**64 - len(rounds):
        raise UserError(f"--seed is {args.seed}; give a number from 0 to {2**64 - len(rounds)}")
    precision = args.precision or lit.default_precision()
    args = replace(args, precision=precision)
    fabric = lit.build_fabric(args.devices, args.num_nodes, args.strategy, precision)
    every = []
    for one in rounds:
        config = lit.student_config(reference, lit.slice_options(one.layers, attn_scale))[0]
        parameters = lit.count_parameters(lit.tensor_shapes(config, reference.tied))
        devices, peak = fabric.world_size, lit.peak_flops_of(fabric.device)
        run = lit.plan_run(config, args.train, args.eval, mixture, len(val), parameters, devices, peak)
        every.append(RoundPlan(**vars(one), run=run))
    if (samples := every[0].run.val_blocks) < 2:
        raise UserError(
            f"{args.data} and --eval.max_iters give {samples} validation sample; the comparison with the reference "
            "needs at least 2 for a standard error, and many for a small one"
        )
    spent = zip(every, accumulate(one.flops for one in every), strict=True)
    plans = [one for one, flops in spent if args.max_flops is None or flops <= args.max_flops]
    if not plans:
        raise UserError(
            f"--max_flops is {args.max_flops:g}; the first round alone takes {every[0].flops:.2e}: give more, or a "
            "smaller training budget"
        )
    settings = {
        **{name: getattr(args, name) for name in ("grow_by", "new_layers", "old_layers", "seed", "margin")},
        "optimizer_state": args.optimizer_state,
        "start_layers": list(rounds[0].layers),
        "start_sha256": sha256_file(initial / lit.WEIGHTS) if initial else None,
        "device": fabric.device.type,
        **lit.training_settings(args.train, args.eval, args.optimizer, args.speed),
        "precision": precision,
        **lit.data_settings(args.data, args.documents, mixture),
    }
    limit = "max_layers" if len(plans) == len(every) else "max_flops"
    evaluator = lit.HeldOutEvaluator(fabric, val, args.documents, samples, args.train.micro_batch_size, precision)
    return GrowthPlan(args, reference, plans, limit, attn_scale, settings, evaluator)


@dataclass(frozen=True)
class GrownReference:
    """The reference: losses in nats per token, and the tokens it was trained on where its manifest says so."""

    name: str
    n_layer: int
    parameters: int
    loss: float
    stderr: float
    tokens: int | None


@dataclass(frozen=True)
class GrownRound(lit.Comparison):
    """A round that is done, compared with the reference; what is ``in_all`` counts the rounds before too."""

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
    loss_stderr: float


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

    def add(self, plan: RoundPlan, comparison: lit.Comparison, loss_stderr: float) -> None:
        """Takes up the next round; ``loss_stderr`` is the standard error of its loss by itself."""
        done = GrownRound(
            **asdict(comparison),
            round=plan.number,
            folder=plan.name,
            n_layer=len(plan.layers),
            layers=list(plan.layers),
            added=plan.added,
            parameters=plan.run.parameters,
            steps=plan.run.total_steps,
            tokens=plan.run.tokens,
            flops=plan.flops,
            tokens_in_all=sum(row.tokens for row in self.rounds) + plan.run.tokens,
            flops_in_all=sum(row.flops for row in self.rounds) + plan.flops,
            loss_stderr=loss_stderr,
        )
        self.rounds.append(done)

    def end(self, outcome: str) -> None:
        """Records why growing ended."""
        self.outcome, self.final = outcome, f"{self.rounds[-1].folder}/{lit.FINAL}"

    def save(self, folder: Path) -> None:
        """Writes the record, the table and the figure, each whole or not at all."""
        write_record(folder / RECORD, self)
        replace_text(folder / TABLE, self.text())
        self._draw(folder)

    def text(self) -> str:
        """The rounds as a Markdown table, losses in nats per token ± one standard error, and what came out."""
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
        return f"{markdown_table(header, rows, left=(0, 7))}\n\n{self._conclusion()}\n"

    def _conclusion(self) -> str:
        row, ref = self.rounds[-1], self.reference
        gap = f"{row.difference:+.4f} ± {row.stderr:.4f} nats (paired) against the reference's {ref.loss:.4f}"
        size = f"{row.n_layer} of {ref.n_layer} layers, {row.tokens_in_all:,} tokens and {gap}"
        if self.outcome == "met":
            return f"Met in round {row.round}: {size}, within the margin of {row.margin:g}."
        if self.outcome:
            return f"Not met: round {row.round} was the last that --{self.outcome} allows, with {size}."
        return f"Continues after round {row.round}: {size}."

    def _draw(self, folder: Path) -> None:
        """Held-out loss against tokens and against FLOPs, round after round, with the reference's line."""
        figure, panels = new_figure(2, sharey=True)
        for axes, unit in zip(panels, ("tokens", "FLOPs"), strict=True):
            draw_level(axes, self.reference.loss, f"reference, {self.reference.n_layer} layers")
            for number, row in enumerate(self.rounds):
                # Padding costs FLOPs and is not counted as tokens, so each axis has a scale of its own.
                scale = 1.0 if unit == "tokens" else row.flops / max(row.tokens, 1)
                begin = (row.tokens_in_all if unit == "tokens" else row.flops_in_all) - row.tokens * scale
                run = lit.read_run(folder / row.folder)
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


def read_rounds(folder: Path) -> list[GrownRound]:
    """Reads the rounds that are done; none where there is no record.

    Raises:
        UserError: the file is damaged.
    """
    path, remedy = folder / RECORD, "remove it, and finished rounds are measured again"
    return read_record(path, Growth, "the history of a growth", remedy).rounds if path.is_file() else []
