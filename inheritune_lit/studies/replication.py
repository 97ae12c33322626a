"""``inheritune reproduce``: the paper's comparisons at a size that runs here, as experiments and as a page."""

import logging
import math
import shutil
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import inheritune_lit as lit
from inheritune_lit.errors import UserError
from inheritune_lit.io.folders import own_folder, replace_text
from inheritune_lit.io.manifest import check_folder, write_manifest
from inheritune_lit.io.plotting import label_ends, new_figure, save_png
from inheritune_lit.io.records import write_record
from inheritune_lit.io.tables import markdown_table, own_table
from inheritune_lit.references import Shape
from inheritune_lit.studies import runner
from inheritune_lit.studies.args import ReproduceArgs
from inheritune_lit.studies.inputs import train_tokenizer

_KIND, RESULTS, PAGE = "replication", "results.json", "replication.md"
_FIGURES = {row["comparison"]: (row["figure"], row["caption"]) for row in own_table(__file__)}  # of training curves
TABLE_1, TABLE_2, TABLE_3, FIGURE_3, FIGURE_1 = _FIGURES
MAIN = ("reference", "inheritune", "scratch", "scratch-2T")  # of the main comparison, trained with every seed
_SEQUENCES, _TOKENS = 100, 100  # of the analysis, the paper's, Section 2
_CHARACTERS, _MOST_LINE = 8_000_000, 4000
_DISTILBERT = {"align": "last", "align_weight": 0.14}
_VAL_FRACTION, _VAL_SAMPLES = 0.02, 256
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scale:
    """Sizes of a replication."""

    n_layer: int  # of the reference, a GPT-2 as the paper's: no biases, tied head, scaled attention
    n_embd: int
    n_head: int
    block_size: int
    vocab_size: int
    variant: int  # layers of the small model, two thirds of the reference's as for the paper's GPT-2 medium
    steps: int  # T of every training, of ``batch`` samples each
    short: int  # steps of the comparison of layers to start from, a tenth of T as in the paper
    batch: int
    lr: float


SCALES = {
    "small": Scale(12, 128, 4, 128, 2048, 8, 300, 30, 16, 2e-3),
    "long": Scale(12, 64, 2, 128, 1024, 8, 4000, 400, 16, 2e-3),
    "tiny": Scale(3, 16, 2, 32, 320, 2, 10, 5, 4, 2e-3),
}


@dataclass(frozen=True)
class ReplicationRecord:
    """``results.json``."""

    scale: dict[str, Any]
    models: list[runner.ExperimentResult]


def reproduce(args: ReproduceArgs) -> runner.StudyResult[ReplicationRecord]:
    """Trains every model of the grid on equal data for ``replication.md``; the same call keeps those that are done.

    A seed is that of weights and of the order of samples: with one seed all models see the same samples.
    """
    scale, out_dir = SCALES[args.scale], args.out_dir
    chosen = _choose(experiments(scale, out_dir), args.only)
    todo = [
        one
        for seed in range(1, args.seeds + 1)
        for one in experiments(scale, out_dir, seed)
        if (name := _model(one.name)) in chosen and (name in MAIN or seed <= args.baseline_seeds)
    ]
    for path in args.source:
        if not path.exists():
            raise UserError(f"no text at {path}; give folders or files that `inheritune prepare` reads")
        next(lit.iter_documents(path), None)  # or it would end after its folder was made
    tokens = sum(one.training.train.max_steps or 0 for one in todo) * scale.batch * scale.block_size
    size = f"up to {scale.n_layer} layers x {scale.n_embd}"
    logger.info(f"reproduce: {len(todo)} trainings of {size}, {tokens:,} tokens in all, in {out_dir}")
    if args.dry_run:
        return runner.StudyResult()
    with own_folder(out_dir):
        settings = {"scale": args.scale, "sizes": asdict(scale)}
        if check_folder(out_dir, _KIND, settings) is None:
            write_manifest(out_dir, _KIND, {"settings": settings})
        text, shape = _gather(args.source, out_dir / "text"), out_dir / "shape"
        runner.fill_once(shape, "reproduce: a tokenizer", lambda folder: _write_shape(folder, text, scale))
        packing = lit.PrepareArgs(text, shape, out_dir / "data", val_fraction=_VAL_FRACTION)
        runner.make_once(out_dir / "data", "reproduce: packed data", partial(lit.prepare, packing))
        sizes, files = {"name": args.scale, **asdict(scale)}, out_dir / RESULTS
        results = runner.run_experiments(
            todo, args.num_workers, args.cluster, lambda done: write_record(files, ReplicationRecord(sizes, done))
        )
        record = ReplicationRecord(sizes, results)
        if len(results) < len(todo):
            return runner.StudyResult(record)
        write_page(out_dir, args.scale, results)
        return runner.StudyResult(record, f"wrote {out_dir / PAGE}")


def experiments(scale: Scale, out_dir: Path, seed: int = 1) -> list[runner.Experiment]:
    """Every model, what others start from before them, cheap ones and those of the main comparison first."""
    n, T = scale.variant, scale.steps
    half, few = scale.n_layer // 2, max(1, n // 2)
    # As the paper's 16 of 24: every other layer, then some of the last ones.
    alternate = list(range(0, scale.n_layer, 2))[:n]
    late = range(scale.n_layer - 2 - (n - len(alternate)), scale.n_layer - 2)
    teacher_layers = ",".join(map(str, [*alternate, *late][:n]))

    def model(
        name: str,
        title: str,
        *groups: str,
        of: str = "reference",
        steps: int = T,
        distill: dict[str, Any] | None = None,
        **slicing: Any,
    ) -> runner.Experiment:
        """A model that starts from a slice of another one, or with random weights where ``of`` is empty."""
        names = name, f"{name}-start", of, "reference"
        folder, initial, source, teacher = (out_dir / "runs" / f"{each}-s{seed}" for each in names)
        ref, options = (source / "final", slicing) if of else (out_dir / "shape", {"init": "random", **slicing})
        train = lit.TrainArgs(
            global_batch_size=scale.batch,
            micro_batch_size=scale.batch,
            max_seq_length=scale.block_size,
            max_steps=steps,
            lr_warmup_steps=max(1, steps // 20),
            min_lr=scale.lr / 10,
            log_interval=max(1, steps // 30),
            save_interval=200,
        )
        training = lit.PretrainArgs(
            initial,
            out_dir / "data",
            folder,
            train=train,
            eval=lit.EvalArgs(interval=max(1, steps // 12), max_iters=max(1, _VAL_SAMPLES // scale.batch)),
            optimizer=lit.OptimizerArgs(lr=scale.lr),
            distill=lit.DistillArgs() if distill is None else lit.DistillArgs(str(teacher / "final"), **distill),
            precision="32-true",
            seed=seed,
        )
        start = lit.SliceArgs(str(ref), out_dir=initial, seed=seed, **options)
        return runner.Experiment(folder.name, title, start, training, groups)

    return [
        model("reference", "reference", TABLE_1, of="", n=scale.n_layer),
        model("inheritune", "Inheritune", TABLE_1, TABLE_2, TABLE_3, FIGURE_3, n=n),
        model("scratch", "from scratch", TABLE_1, FIGURE_3, of="", n=n),
        model("scratch-2T", "from scratch, twice the steps", TABLE_1, of="", n=n, steps=2 * T),
        model("first-short", f"first {half}", FIGURE_1, n=half, steps=scale.short),
        model("middle-short", f"middle {half}", FIGURE_1, layers=f"middle:{half}", steps=scale.short),
        model("last-short", f"last {half}", FIGURE_1, layers=f"last:{half}", steps=scale.short),
        model("random-short", "random", FIGURE_1, of="", n=half, steps=scale.short),
        model("hybrid", "hybrid stacking", TABLE_2, n=n, layers=f"first:{few}", init="hybrid-stack"),
        model("half-width", "half width", TABLE_2, init="half-width"),
        model("shallow", "the shallow model that is stacked", of="", n=few),
        model("stacking", "stacking", TABLE_2, of="shallow", n=n, init="stack"),
        model("attn", "attention and norms", TABLE_3, n=n, parts="attn,norm"),
        model("mlp", "MLP and norms", TABLE_3, n=n, parts="mlp,norm"),
        model("attn-mlp", "attention and MLP", TABLE_3, n=n, parts="attn,mlp"),
        model("kd", "logit distillation", FIGURE_3, of="", n=n, distill={}),
        model("distilbert", "DistilBERT-style", FIGURE_3, layers=teacher_layers, distill=_DISTILBERT),
        model("inheritune-kd", "Inheritune and logit distillation", FIGURE_3, n=n, distill={}),
    ]


def _model(name: str) -> str:
    """The name of an experiment without its seed."""
    return name.rpartition("-s")[0]


def _choose(grid: list[runner.Experiment], only: list[str] | None) -> set[str]:
    """Names of the models to train: those that were asked for, and those that they need, which stand before them."""
    names = [_model(one.name) for one in grid]
    if unknown := [name for name in only or [] if name not in names]:
        raise UserError(f"--only {unknown[0]} is not a model of the grid; give some of {', '.join(names)}")
    chosen = set(names if only is None else only)
    for name, one in reversed(list(zip(names, grid, strict=True))):
        chosen |= {_model(other.name) for other in grid if name in chosen and one.needs(other)}
    return chosen


def _write_shape(folder: Path, text: str, scale: Scale) -> None:
    """Writes ``model_config.yaml`` and a SentencePiece tokenizer made of equal parts of each file."""
    shape = lit.describe_shape(Shape("gpt2-replication", scale.n_layer, scale.n_embd, scale.n_head), folder)
    sizes = {"block_size": scale.block_size, "vocab_size": scale.vocab_size, "padded_vocab_size": scale.vocab_size}
    config = replace(shape.config, hf_config={"org": "local", "name": shape.name}, **sizes)
    lit.save_lit_config(config, folder)
    documents = lit.iter_documents(text, max_characters=_CHARACTERS)
    lines = (line[:_MOST_LINE] for document in documents for line in document.split("\n") if line)
    train_tokenizer(folder / "tokenizer.model", lines, scale.vocab_size)


def _gather(source: list[Path], folder: Path) -> str:
    """One folder with copies of all of the text, one domain each; the text itself where it is one folder or file."""
    if len(source) == 1:
        return str(source[0])
    named: dict[str, Path] = {}
    for path in source:
        if (other := named.setdefault(path.resolve().name, path)).resolve() != path.resolve():
            raise UserError(f"{other} and {path} are of one name; rename one, or give the folder above both")

    def copy(staging: Path) -> None:
        for name, path in named.items():
            (shutil.copytree if path.is_dir() else shutil.copy2)(path, staging / name)

    runner.fill_once(folder, "reproduce: the text of all sources", copy)
    return str(folder)


def write_page(out_dir: Path, name: str, results: list[runner.ExperimentResult]) -> None:
    """Writes ``replication.md`` and its figures from the results of all models that are done, and analyses two."""
    scale = SCALES[name]
    tokens = scale.steps * scale.batch * scale.block_size
    about = Path(__file__).with_suffix(".md").read_text(encoding="utf-8")
    parts = [about.format(name=name, scale=scale, tokens=tokens).rstrip()]
    shown: set[str] = set()
    for group, (file, title) in _FIGURES.items():
        models = runner.by_title(results, group)
        if models.keys() <= shown:  # of what is compared here nothing has been trained
            continue
        shown |= models.keys()
        _draw(out_dir / file, models)
        parts += [f"## {group}", _table(models), f"![{title}]({file})"]
    parts += _rank_section(out_dir, scale.block_size)
    replace_text(out_dir / PAGE, "\n\n".join(parts) + "\n")


def _table(models: dict[str, list[runner.ExperimentResult]]) -> str:
    ours = models.get("Inheritune") or next(iter(models.values()))
    rows = []
    for title, runs in models.items():
        run, summary = runs[0], runner.summarize(runs, ours)
        sizes = [f"{value:,}" for value in (run.n_layer, run.n_embd, run.parameters, run.steps, run.tokens, len(runs))]
        noise = summary.stderr if math.isnan(summary.std) else summary.std
        spread = "" if math.isnan(summary.difference_std) else f" ± {summary.difference_std:.3f}"
        gap = f"{summary.difference:+.3f}{spread}" if runs is not ours and summary.paired else ""
        rows.append([title, *sizes, f"{summary.loss:.3f} ± {noise:.3f}", gap])
    header = ["model", "layers", "width", "parameters", "steps", "tokens", "seeds", "held-out loss"]
    return markdown_table([*header, f"minus {ours[0].title}'s"], rows)


def _draw(path: Path, models: dict[str, list[runner.ExperimentResult]]) -> None:
    figure, (whole, end) = new_figure(2)
    lengths = [runs[0].tokens for runs in models.values()]
    # The last part decides, and is flat beside the first.
    late = min(0.5 * max(lengths), 0.75 * min(lengths))
    for axes, title, start in ((whole, "From the start", 0.0), (end, "Towards the end", late)):
        for number, runs in enumerate(models.values()):
            runner.draw_mean_curve(axes, number, runs, start)
        axes.set_title(title)
    whole.set_ylabel("held-out loss (nats per token)")
    label_ends(end)
    save_png(figure, path)


def _rank_section(out_dir: Path, block_size: int) -> list[str]:
    """Analyses both models of the first seed on held-out text; no paragraphs while they are not there."""
    models = {name: out_dir / "runs" / f"{name}-s1" / "final" for name in ("inheritune", "reference")}
    if not all(path.is_dir() for path in models.values()):
        return []
    data, tokens = out_dir / "data", min(_TOKENS, block_size)
    held_out = lit.PackedDataset(data, "val", tokens)
    whole = int((held_out.targets(range(len(held_out))) == tokens).sum())
    # Without what takes long.
    options: dict[str, Any] = {"maps": "none", "drop_sequences": 0}
    options |= {"num_sequences": min(_SEQUENCES, whole), "seq_length": tokens}
    (out_dir / "analysis").mkdir(exist_ok=True)
    sentences, other = [], None
    for name, checkpoint in models.items():
        folder = out_dir / "analysis" / name
        measured = lit.analyze_model(lit.AnalyzeArgs(str(checkpoint), data, folder, compare=other, **options))
        other = folder
        sentences.append(f"- {name}: {str(measured).splitlines()[0]}")
    figure = "![attention rank and mass by layer](analysis/reference/rank_and_mass.png)"
    return ["## Figure 9: attention rank by layer", "\n".join(sentences), figure]
