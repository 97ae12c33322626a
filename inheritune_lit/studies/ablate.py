"""``inheritune ablate``: slices by several criteria, all trained alike with several seeds, and compared."""

import logging
import math
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import inheritune_lit as lit
from inheritune_lit.errors import UserError
from inheritune_lit.io.folders import own_folder, replace_text
from inheritune_lit.io.manifest import installed_versions, read_manifest
from inheritune_lit.io.plotting import COLOURS, label_ends, new_figure, save_png
from inheritune_lit.io.records import write_record
from inheritune_lit.io.tables import markdown_table
from inheritune_lit.studies import runner
from inheritune_lit.studies.args import SEARCHED, AblateArgs, Criterion

RECORD, PAGE, FIGURE = "ablation.json", "ablation.md", "ablation.png"
_FRESH = "fresh weights"
logger = logging.getLogger(__name__)
Chosen = dict[Criterion, list[int] | None]  # layers by criterion, None for fresh weights


@dataclass(frozen=True)
class AblationRecord:
    """``ablation.json``."""

    reference: str
    depth: int
    n: int
    training: dict[str, object]
    search: dict[str, Any] | None  # which one chose layers, where one did
    criteria: list[runner.SeedSummary]
    runs: list[runner.ExperimentResult]
    versions: dict[str, str]


def ablate(args: AblateArgs) -> runner.StudyResult[AblationRecord]:
    """Slices a reference by every criterion, trains each slice with every seed, and compares what they score.

    ``out_dir`` gets ``slices/``, ``runs/``, and at the end ``ablation.json``, ``.md`` and ``.png``. What is there is
    kept: the same call continues. Criteria that choose the same layers share their runs. Bad input, or runs with other
    settings in ``out_dir``, are a ``UserError``.
    """
    if read_manifest(args.data, "packed_data") is None:
        raise UserError(f"ablate trains, and {args.data} is not packed data; make it with `inheritune prepare`")
    with lit.resolve_reference(args.ref) as resolved:
        reference, folder, search = resolved.reference, args.search, None
        name, depth = reference.name, reference.config.n_layer
        n = max(1, depth // 2) if args.n is None else args.n
        each = _plan_of_each(args, reference, n)
        if folder is not None and not set(args.criteria).isdisjoint(SEARCHED):
            search = lit.load_search(folder)
            lit.layers_for(search, folder, n, reference)  # or it is of another model, or has not come so far
        chosen = {one: select_layers(one, n, depth, search) for one in args.criteria}
        logger.info(_plan_text(f"ablate: {n} of {depth} layers of {name}", chosen, len(args.seeds), each))
        if args.dry_run:
            return runner.StudyResult()
        used = None
        if search is not None and folder is not None:
            hashes = resolved.open().file_hashes().values()
            used = lit.search_record(search, folder, name, [{"sha256": each} for each in hashes])
    with own_folder(args.out_dir):
        experiments = _experiments(args, n, chosen)
        different = list({one.name: one for one in experiments.values()}.values())
        results = {one.name: one for one in runner.run_experiments(different, args.num_workers, args.cluster)}
        if len(results) < len(different):
            return runner.StudyResult()
        runs = [replace(results[experiments[one, seed].name], title=one) for one in chosen for seed in args.seeds]
        settings = asdict(args)
        training = {each.name: settings[each.name] for each in fields(lit.TrainingArgs)}
        record = AblationRecord(name, depth, n, training, used, compare_criteria(runs), runs, installed_versions())
        write_record(args.out_dir / RECORD, record)
        text = ablation_text(record)
        replace_text(args.out_dir / PAGE, text)
        _draw(record, args.out_dir / FIGURE)
        return runner.StudyResult(record, f"{text}\nwrote {args.out_dir}/{RECORD}, {PAGE} and {FIGURE}")


def select_layers(criterion: Criterion, n: int, depth: int, search: lit.Search | None) -> list[int] | None:
    """Chooses n of the reference's ``depth`` layers, counted from 0, or those of a search for n; None for "random"."""
    if criterion == "random":
        return None
    if criterion in SEARCHED:
        assert search is not None, "AblateArgs checks it"
        return (search.found if criterion == "search" else search.compared[criterion])[str(n)].layers
    if criterion == "alternate":
        return lit.spread_layers(depth, n)
    return lit.parse_layers(f"{criterion}:{n}", depth)


def _experiments(args: AblateArgs, n: int, chosen: Chosen) -> dict[tuple[str, int], runner.Experiment]:
    """The run behind each criterion and seed; criteria that choose the same layers have runs of the same names."""
    found: dict[tuple[str, int], runner.Experiment] = {}
    for seed in args.seeds:
        for criterion, layers in chosen.items():
            text = lit.layers_text(layers or [])
            slicing: dict[str, Any] = {"layers": text} if text else {"n": n, "init": "random", "seed": seed}
            stem = f"layers-{text.replace(',', '_')}" if text else "random"
            name = f"{stem}-seed{seed}"
            folder = args.out_dir / "slices" / (stem if text else name)
            start = lit.SliceArgs(args.ref, out_dir=folder, **slicing)
            training = runner.training_of(args, folder, args.out_dir / "runs" / name, seed=seed)
            found[criterion, seed] = runner.Experiment(name, criterion, start, training)
    return found


def compare_criteria(runs: list[runner.ExperimentResult]) -> list[runner.SeedSummary]:
    """Puts the seeds of each criterion together and compares them with the first one's, in the order of the runs."""
    groups, found = list(runner.by_title(runs).values()), list[runner.SeedSummary]()
    for own in groups:
        same = next((one.title for one in found if own[0].layers is not None and one.layers == own[0].layers), None)
        found.append(replace(runner.summarize(own, groups[0]), same_as=same))
    return found


def _plan_of_each(args: AblateArgs, reference: lit.ReferenceModel, n: int) -> lit.RunPlan:
    config = lit.student_config(reference, lit.SliceArgs(args.ref, n=n))[0]
    length = lit.sample_length(args.train, config)
    train, val = (lit.PackedDataset(args.data, split, length, args.documents) for split in ("train", "val"))
    mixture = lit.make_mixture(train.domains, args.mixture.weights)
    model = lit.TrainedModel(config, reference.tied, args.train.trainable)
    taught = lit.teacher_flops(args.distill, length)
    return lit.plan_run(model, args.train, args.eval, mixture, len(val), teacher_flops=taught)


def _plan_text(title: str, chosen: Chosen, seeds: int, each: lit.RunPlan) -> str:
    width, words = max(map(len, chosen)), {one: lit.layers_text(chosen[one] or []) or _FRESH for one in chosen}
    different = len(set(words.values()))
    counted = f"  {different} different x {seeds} seeds = {different * seeds} runs, each {each.flops_text()}"
    return "\n".join([title, *(f"  {one:<{width}}  {text}" for one, text in words.items()), counted])


def ablation_text(record: AblationRecord) -> str:
    """The table and what it says, as Markdown."""
    found, seeds = record.criteria, len(record.criteria[0].seeds)
    first, best = found[0], min(found, key=lambda one: one.loss)
    rows = []
    for one in found:
        trained, extremes = f"{_loss(one.loss)} ± {_loss(one.std)}", f"{_loss(one.low)} to {_loss(one.high)}"
        gap = [f"{one.difference:+.4f} ± {_loss(one.difference_std)}", f"{one.lower_in} of {seeds}"]
        cells = [one.title, lit.layers_text(one.layers or []) or _FRESH, _loss(one.untrained), trained, extremes]
        rows.append(cells if one is first else [*cells, *gap])
    header = ["criterion", "layers", "untrained", "trained", "range", f"minus {first.title}", "lower in"]
    shared = [f"{one.title} chose the same layers as {one.same_as}" for one in found if one.same_as]
    verdict = f"No criterion has a lower mean than {first.title}."
    if best.loss != first.loss:
        below = f"{-best.difference:.4f} below {first.title}, lower in {best.lower_in} of {seeds} seeds"
        verdict = f"The lowest mean has {best.title}: {below}."
    text = f"{'; '.join(shared)}: one run counts for both.\n{verdict}" if shared else verdict
    return f"""# {record.n} of {record.depth} layers of {record.reference}, by criterion

{markdown_table(header, rows)}

Held-out loss in nats per token after {record.runs[0].tokens:,} tokens; mean ± standard deviation over {seeds} seeds \
of the data order, the same for every criterion. Differences are taken seed by seed. The held-out text itself adds a \
standard error of {fmean(one.stderr for one in found):.4f}, which all criteria share.
{text}
"""


def _loss(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}"


def _draw(record: AblationRecord, path: Path) -> None:
    """Loss of every seed by criterion, its difference to the first criterion, and loss against tokens."""
    figure, (trained, difference, curves) = new_figure(3, size=(5.3, 4.4))
    groups, first = runner.by_title(record.runs), record.criteria[0].title
    for number, one in enumerate(record.criteria):
        runs, colour = groups[one.title], COLOURS[number % len(COLOURS)]
        gaps = runner.differences_by_seed(runs, groups[first])
        for axes, values in ((trained, [run.val_loss for run in runs]), (difference, gaps)):
            axes.scatter([number] * len(runs), values, color=colour, s=18, alpha=0.6)
        noise = None if math.isnan(one.std) else one.std
        trained.errorbar(number, one.loss, yerr=noise, color=colour, marker="_", ms=18)
        runner.draw_mean_curve(curves, number, runs)
    for axes in (trained, difference):
        axes.set_xticks(range(len(groups)), list(groups), rotation=25, ha="right")
    trained.set(ylabel="held-out loss (nats per token)", title="After training: every seed, mean ± std")
    # Some criteria may be behind by nats where others differ by hundredths.
    difference.set_yscale("symlog", linthresh=0.01)
    difference.yaxis.set_major_formatter("{x:g}")
    difference.margins(y=0.1)
    difference.axhline(0, color="0.4", lw=0.8)
    difference.set(ylabel="nats per token, linear below 0.01", title=f"Minus {first}, seed by seed")
    curves.set(ylabel="held-out loss, mean over seeds", title="While training")
    label_ends(curves)
    save_png(figure, path)
