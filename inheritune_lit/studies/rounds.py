"""The rounds of a growth: planned with what they cost at most, and done with what came out."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import inheritune_lit as lit
from inheritune_lit.errors import UserError
from inheritune_lit.io.arguments import MOST_SEED, check_numbers
from inheritune_lit.io.folders import replace_text
from inheritune_lit.io.manifest import sha256_file
from inheritune_lit.io.plotting import draw_curve, draw_level, engineering_ticks, label_ends, new_figure, save_png
from inheritune_lit.io.records import read_record, write_record
from inheritune_lit.io.tables import markdown_table
from inheritune_lit.studies.args import GrowArgs

RECORD, TABLE, FIGURE = "grow.json", "grow.md", "grow.png"


@dataclass(frozen=True)
class Round:
    """One round, counted from 1; what is ``in_all`` counts the rounds before too."""

    round: int
    folder: str  # of its run, in the folder of the growth
    n_layer: int
    layers: list[int]  # the reference's layer behind each of the model's
    added: int  # how many of them, the last ones, are new
    parameters: int = 0
    steps: int = 0
    tokens: int = 0
    flops: float = 0.0
    tokens_in_all: int = 0
    flops_in_all: float = 0.0


def plan_layers(args: GrowArgs, depth: int, start: tuple[int, ...] | None = None) -> list[Round]:
    """Plans all rounds that there can be, Algorithm 1 of the paper, not yet what they cost.

    ``start`` has a checkpoint's layers of a reference of ``depth``, its first ``args.n`` when None; others are refused.
    """
    if start is None:
        n = max(1, depth // 2) if args.n is None else args.n
        if not 1 <= n <= depth:
            raise UserError(f"--n is {n}; the reference has {depth} layers, give 1 to {depth}")
        start = tuple(range(n))
    first, count, limit = len(start), args.grow_by, depth if args.max_layers is None else args.max_layers
    if not first <= limit <= depth:
        ends = f"the start has {first} layers and the reference {depth}, beyond which there is nothing to grow"
        raise UserError(f"--max_layers is {limit}; {ends}: give {first} to {depth}")
    listed = list(range(first, depth))  # "next"
    if args.new_layers != "next":
        try:
            listed = lit.parse_layers(args.new_layers, depth)
        except UserError as error:
            # The syntax is that of `inheritune slice`, whose flag has another name.
            message = str(error).replace("--layers", "--new_layers", 1)
            raise UserError(f"{message}; or next") from error
    in_all = [*start, *listed]
    every = [in_all[:n_layer] for n_layer in range(first, min(limit, len(in_all)) + 1, count)]
    if len(every) == 1 and args.max_layers != first:
        end = f"--max_layers {limit}" if limit < depth else f"the reference's {depth} layers"
        if args.new_layers != "next" and len(listed) < count:
            end = f"--new_layers {args.new_layers}, which are {len(listed)}"
        remedy = f"give a smaller --grow_by, a smaller start, or --max_layers {first} to train without growing"
        raise UserError(f"--grow_by {count} on {first} layers grows past {end}; {remedy}")
    return [
        Round(number, f"round-{number:02}-{len(layers)}l", len(layers), layers, count if number > 1 else 0)
        for number, layers in enumerate(every, start=1)
    ]


class GrowthPlan:
    """What is known before anything is spent; ``str()`` of it is the plan that people read.

    Making one checks all that can be checked without computing. ``rounds`` are those that there can be, ``limit`` is
    what ends growing after them, "max_layers" or "max_flops", ``settings`` are all that change the outcome, the
    reference's identity aside, and ``evaluator`` measures the held-out losses that decide.
    """

    def __init__(self, args: GrowArgs, reference: lit.ReferenceModel) -> None:
        args = replace(args, eval=args.eval.continued(args.out_dir))
        initial, train = args.initial_checkpoint_dir, args.train
        self.attn_scale, start = lit.attn_scale_of(initial), lit.layers_of(initial) if initial else None
        if initial and start:
            lit.check_start(initial, start, reference, self.attn_scale)
        every = plan_layers(args, reference.config.n_layer, start)
        lit.check_fits_model(args.data, reference.folder, reference.config.padded_vocab_size)
        length = lit.sample_length(train, reference.config)
        teacher_flops = lit.teacher_flops(args.distill, length)
        train_data, val = (lit.PackedDataset(args.data, split, length, args.documents) for split in ("train", "val"))
        mixture = lit.make_mixture(train_data.domains, args.mixture.weights)
        check_numbers(args, "seed", least=0, most=MOST_SEED - len(every) + 1)  # the last round's is the highest
        precision = args.precision or lit.default_precision()
        self.args, self.reference = replace(args, precision=precision), reference
        self.fabric = fabric = lit.build_fabric(args.devices, args.num_nodes, args.strategy, precision)
        lit.check_machine(args, fabric.device)
        self.first, self.rounds, self.limit, samples = fabric.global_rank == 0, list[Round](), "max_layers", 0
        tokens, flops, devices = 0, 0.0, fabric.world_size
        for one in every:
            config = lit.student_config(reference, lit.slice_options(tuple(one.layers), self.attn_scale))[0]
            model = lit.TrainedModel(config, reference.tied, train.trainable)
            run = lit.plan_run(model, train, args.eval, mixture, len(val), devices, teacher_flops=teacher_flops)
            of_round = run.total_steps * run.tokens_per_step * run.flops_per_token
            samples, tokens, flops = run.val_blocks, tokens + run.tokens, flops + of_round
            if samples < 2:
                given = f"{args.data} and --eval.max_iters give {samples} validation sample"
                needed = "needs at least 2 for a standard error, and many for a small one"
                raise UserError(f"{given}; the comparison with the reference {needed}")
            if args.max_flops is not None and flops > args.max_flops:
                self.limit = "max_flops"
                break
            of_run = replace(one, parameters=run.parameters, steps=run.total_steps, tokens=run.tokens, flops=of_round)
            self.rounds.append(replace(of_run, tokens_in_all=tokens, flops_in_all=flops))
        if not self.rounds:
            needed = f"the first round alone takes {flops:.2e}: give more, or a smaller training budget"
            raise UserError(f"--max_flops is {args.max_flops:g}; {needed}")
        names = ("grow_by", "new_layers", "old_layers", "seed", "margin")
        distill = {name: str(each) for name, each in vars(args.distill).items()} if args.distill.active else None
        self.settings = {
            **{name: getattr(args, name) for name in names},
            "optimizer_state": "reset",  # earlier versions could keep it: such a growth is not continued
            "start_layers": every[0].layers,
            "start_sha256": sha256_file(initial / lit.WEIGHTS) if initial else None,
            "device": fabric.device.type,
            **lit.training_settings(train, args.eval, args.optimizer, args.speed),
            "precision": precision,
            "distill": distill,
            **lit.data_settings(args.data, args.documents, mixture),
        }
        size = train.micro_batch_size
        self.evaluator = lit.HeldOutEvaluator(fabric, val, args.documents, samples, size, precision)

    def __str__(self) -> str:
        reference, args, peak = self.reference, self.args, lit.peak_flops_of(self.fabric.device)

        def cost(flops: float) -> str:
            if peak is None:
                return f"{flops:.2e} FLOPs"
            hours = flops / (lit.ASSUMED_MFU * peak * self.fabric.world_size) / 3600
            return f"{flops:.2e} FLOPs, {hours:,.1f} h at {lit.ASSUMED_MFU:.0%} of the peak"

        new_layers = "the reference's next" if args.new_layers == "next" else f"{args.new_layers} of the reference"
        lines = [
            f"grow from {reference.name}: {reference.config.n_layer} layers, width {reference.config.n_embd}; new "
            f"layers: {new_layers}",
            f"until the loss on {self.evaluator.blocks:,} validation samples is at most {args.margin:g} nats above the "
            f"reference's with 95% confidence (difference + {lit.Z} paired standard errors)",
        ]
        if args.distill.active:
            teacher = args.distill.teacher or args.distill.teacher_logits
            lines.append(f"every round learns from {teacher}, the forward pass of a teacher is counted below")
        for one in self.rounds:
            new = f", new: {lit.layers_text(one.layers[-one.added :])}" if one.added else ""
            sizes = f"{one.n_layer} layers{new}, {one.parameters:,} parameters, {one.tokens:,} tokens"
            lines.append(f"round {one.round}: {sizes}, {cost(one.flops)}")
        spent = cost(self.rounds[-1].flops_in_all)
        return "\n     ".join([*lines, f"at most {spent} on {lit.machine_name(self.fabric)}"])


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
class GrownRound(Round, lit.Comparison):
    """A round that is done, compared with the reference; ``loss_stderr`` is that of its loss by itself."""

    loss_stderr: float = field(kw_only=True)


@dataclass
class Growth:
    """``grow.json``."""

    reference: GrownReference
    rounds: list[GrownRound]
    outcome: str | None = None  # "met", "max_layers" or "max_flops", whatever ended growing; None while it is going on
    final: str | None = None  # the last round's checkpoint in the folder of the growth, at the end

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
        rows = [["reference", *sizes, f"{ref.loss:.4f} ± {ref.stderr:.4f}"]]
        for row in self.rounds:
            sizes = [str(row.n_layer), f"{row.parameters:,}", f"{row.tokens_in_all:,}", f"{row.flops_in_all:.2e}"]
            loss, gap = f"{row.loss:.4f} ± {row.loss_stderr:.4f}", f"{row.difference:+.4f} ± {row.stderr:.4f}"
            rows.append([str(row.round), *sizes, loss, gap, row.verdict])
        sizes = ["layers", "parameters", "tokens in all", "FLOPs in all"]
        header = ["round", *sizes, "held-out loss", "above the reference (paired)", "verdict"]
        gap = f"{gap} nats (paired) against the reference's {ref.loss:.4f}"
        size = f"{row.n_layer} of {ref.n_layer} layers, {row.tokens_in_all:,} tokens and {gap}"
        conclusion = f"Continues after round {row.round}: {size}."
        if self.outcome == "met":
            conclusion = f"Met in round {row.round}: {size}, within the margin of {row.margin:g}."
        elif self.outcome:
            conclusion = f"Not met: round {row.round} was the last that --{self.outcome} allows, with {size}."
        return f"{markdown_table(header, rows, left=(0, 7))}\n\n{conclusion}\n"

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
    """Reads the rounds that are done, none where there is no record; a damaged one is a ``UserError``."""
    path, remedy = folder / RECORD, "remove it, and finished rounds are measured again"
    return read_record(path, Growth, "the history of a growth", remedy).rounds if path.is_file() else []
