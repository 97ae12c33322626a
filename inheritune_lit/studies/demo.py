"""The whole recipe in miniature: a reference, its slice, a random model of the same size, and what each scores."""

import logging
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import inheritune_lit as lit
from inheritune_lit.io import plotting
from inheritune_lit.io.folders import own_folder, replace_text
from inheritune_lit.io.tables import markdown_table
from inheritune_lit.studies import runner
from inheritune_lit.studies.args import DemoArgs
from inheritune_lit.studies.inputs import SHAPE, TASK, write_corpus, write_shape, write_task

REFERENCE_STEPS, STUDENT_STEPS = 500, 150
REFERENCE_LAYERS = SHAPE["num_hidden_layers"]
STUDENT_LAYERS = REFERENCE_LAYERS // 2  # the paper's n = k/2 (Algorithm 1, line 1)
CHANCE = 0.25
_VAL_FRACTION = 0.05
_TRAINING = lit.TrainArgs(
    global_batch_size=16, micro_batch_size=16, lr_warmup_steps=20, min_lr=1e-4, log_interval=10, save_interval=100
)
_SCORED = {"reference": "reference/final", "slice, untrained": "slice-start"}
_SCORED |= {"slice": "slice/final", "random": "random/final"}
logger = logging.getLogger(__name__)
Scores = dict[str, lit.CheckpointScores]  # by the name of the model


def run_demo(args: DemoArgs) -> runner.StudyResult[Scores]:
    """Trains, slices, continues and compares, or goes on with that; ends with ``results.md`` and ``results.png``."""
    started, out_dir = time.monotonic(), args.out_dir
    logger.info("demo: about four minutes on two cores, offline")
    with own_folder(out_dir):
        corpus, shape, data, task = (out_dir / name for name in ("corpus", "shape", "data", "task"))
        runner.fill_once(corpus, "demo: the standard library's text", write_corpus)
        runner.fill_once(shape, "demo: a tokenizer and a model shape", lambda folder: write_shape(folder, corpus))
        packing = lit.PrepareArgs(str(corpus), shape, data, val_fraction=_VAL_FRACTION)
        runner.make_once(data, "demo: packed tokens", partial(lit.prepare, packing))
        held_out = (text for text in lit.iter_documents(corpus) if lit.is_validation(text, _VAL_FRACTION))
        runner.fill_once(task, "demo: the task", lambda folder: write_task(folder, held_out))
        experiments = demo_experiments(out_dir)
        trained = runner.run_experiments(experiments)
        if len(trained) < len(experiments):
            return runner.StudyResult()
        checkpoints, tasks = [out_dir / path for path in _SCORED.values()], str(task / f"{TASK}.yaml")
        scoring = lit.EvaluateArgs(checkpoints, tasks=tasks, val_data=data, out_dir=out_dir / "scores")
        logger.info("demo: scores of every model on held-out text")
        models = dict(zip(_SCORED, lit.evaluate(scoring).checkpoints, strict=True))
        losses = {name: (one.held_out["loss"], one.held_out["stderr"]) for name, one in models.items() if one.held_out}
        text = f"{score_table(models)}\n{conclusion(losses)}"
        replace_text(out_dir / "results.md", text)
        _draw(out_dir, trained, models)
        wrote = f"wrote {out_dir}/results.md and {out_dir}/results.png in {time.monotonic() - started:.0f} s"
        return runner.StudyResult(models, f"{text}\n{wrote}")


def demo_experiments(out_dir: Path) -> list[runner.Experiment]:
    """The reference, its first layers, and a random model of their shape."""

    def model(name: str, ref: Path, n: int, steps: int, **slicing: Any) -> runner.Experiment:
        start = out_dir / f"{name}-start"
        training = lit.PretrainArgs(
            start,
            out_dir / "data",
            out_dir / name,
            train=replace(_TRAINING, max_steps=steps),
            eval=lit.EvalArgs(interval=25, max_iters=8),
            optimizer=lit.OptimizerArgs(lr=2e-3),
            precision="32-true",
        )
        return runner.Experiment(name, name, lit.SliceArgs(str(ref), n=n, out_dir=start, **slicing), training)

    reference = out_dir / "reference" / "final"
    return [
        model("reference", out_dir / "shape", REFERENCE_LAYERS, REFERENCE_STEPS, init="random"),
        model("slice", reference, STUDENT_LAYERS, STUDENT_STEPS),
        model("random", reference, STUDENT_LAYERS, STUDENT_STEPS, init="random"),
    ]


def score_table(models: Scores) -> str:
    """The models as a Markdown table; losses in nats per token, accuracy in percent."""
    rows = []
    for name, one in models.items():
        tokens, accuracy = (one.manifest or {}).get("tokens", 0), one.tasks[TASK]["acc"]
        sizes = [str(one.n_layer), f"{one.parameters:,}", f"{tokens:,}"]
        loss = "{loss:.3f} ± {stderr:.3f}".format(**one.held_out or {})
        rows.append([name, *sizes, loss, f"{accuracy['value']:.1%} ± {100 * accuracy['stderr']:.1f}"])
    header = ["model", "layers", "parameters", "tokens trained", "held-out loss"]
    return markdown_table([*header, "next passage, 4 choices (chance 25%)"], rows) + "\n"


def conclusion(losses: dict[str, tuple[float, float]]) -> str:
    """One sentence that compares the trained slice with the random model and the reference, whatever came out.

    Losses are by the name of the model, with their standard errors.
    """
    inherited, random, reference = (losses[name] for name in ("slice", "random", "reference"))
    gap = random[0] - inherited[0]
    noise = (random[1] ** 2 + inherited[1] ** 2) ** 0.5  # unpaired, so the true noise of the gap is smaller
    verdict = "ahead of" if gap > 2 * noise else "behind" if gap < -2 * noise else "not distinguishable from"
    behind = inherited[0] - reference[0]
    ahead = f"{verdict} the random model of its size: its loss is {abs(gap):.3f} {'lower' if gap >= 0 else 'higher'}"
    rest = f"{abs(behind):.3f} {'above' if behind >= 0 else 'below'} the reference, which has twice its layers"
    return f"On equal tokens the slice is {ahead} (±{noise:.3f}); it is {rest}.\n"


def _draw(out_dir: Path, trained: list[runner.ExperimentResult], models: Scores) -> None:
    """Held-out loss against tokens, and accuracy of each model in the colours of its curve."""
    figure, (losses, accuracies) = plotting.new_figure(2)
    number_of = {"slice": 0, "random": 1, "reference": 2, "slice, untrained": 3}
    for each in trained:
        if each.name == "reference":
            plotting.draw_level(losses, each.val_loss, "reference, trained")
        else:
            runner.draw_mean_curve(losses, number_of[each.name], [each])
    losses.set(ylabel="held-out loss (nats per token)", title="Held-out loss")
    plotting.label_ends(losses)
    scores = [one.tasks[TASK]["acc"] for one in models.values()]
    heights, errors = ([100 * score[key] for score in scores] for key in ("value", "stderr"))
    colours = [plotting.COLOURS[number_of[name]] for name in models]
    bars = accuracies.bar(list(models), heights, yerr=errors, color=colours, capsize=3)
    accuracies.bar_label(bars, fmt="%.1f", padding=2)
    accuracies.margins(y=0.12)
    plotting.draw_level(accuracies, 100 * CHANCE, "chance")
    plotting.label_ends(accuracies)
    accuracies.set(ylabel="accuracy (%)", title="Which passage comes next?")
    plotting.save_png(figure, out_dir / "results.png")
