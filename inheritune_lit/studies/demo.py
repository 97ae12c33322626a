"""The whole recipe in miniature: a reference, its slice, a random model of the same size, and what each scores."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from inheritune_lit.data.args import PrepareArgs
from inheritune_lit.data.prepare import prepare
from inheritune_lit.data.sources import iter_documents
from inheritune_lit.data.split import is_validation
from inheritune_lit.evaluation.harness import evaluate
from inheritune_lit.inherit.args import SliceArgs
from inheritune_lit.inherit.slice import slice_model
from inheritune_lit.io.folders import new_folder
from inheritune_lit.studies.demo_inputs import SHAPE, TASK, write_corpus, write_shape, write_task
from inheritune_lit.studies.demo_outcome import Row, conclusion, plot, table
from inheritune_lit.train.args import EvalArgs, OptimizerArgs, PretrainArgs, TrainArgs
from inheritune_lit.train.pretrain import pretrain

REFERENCE_STEPS, STUDENT_STEPS = 500, 150
REFERENCE_LAYERS = SHAPE["num_hidden_layers"]
STUDENT_LAYERS = REFERENCE_LAYERS // 2  # the paper's n = k/2 (Algorithm 1, line 1)
_VAL_FRACTION = 0.05
_SCORED = {
    "reference": "reference/final",
    "slice, untrained": "slice-start",
    "slice": "slice/final",
    "random": "random/final",
}


def run_demo(out_dir: Path) -> None:
    """Train, slice, continue, compare; ends with ``out_dir/results.md`` and ``out_dir/results.png``.

    Args:
        out_dir: folder for everything; parts that are already there are kept, a stopped training is continued.

    Raises:
        UserError: this Python carries too little text, or ``out_dir`` cannot be written.
    """
    start = time.monotonic()
    print("demo: about four minutes on two cores, offline", file=sys.stderr)
    corpus, shape, data, task = (out_dir / name for name in ("corpus", "shape", "data", "task"))
    _stage("collect the standard library's text", corpus, lambda: _fill(corpus, write_corpus))
    _stage(
        "make a tokenizer and a model shape", shape, lambda: _fill(shape, lambda folder: write_shape(folder, corpus))
    )
    _stage("pack the tokens", data, lambda: prepare(PrepareArgs(corpus, shape, data, val_fraction=_VAL_FRACTION)))
    _stage("make the task", task, lambda: _fill(task, lambda folder: write_task(folder, _held_out_texts(corpus))))
    reference = out_dir / "reference" / "final"
    _train(out_dir, "reference", shape, REFERENCE_LAYERS, "random", REFERENCE_STEPS)
    _train(out_dir, "slice", reference, STUDENT_LAYERS, "inherit", STUDENT_STEPS)
    _train(out_dir, "random", reference, STUDENT_LAYERS, "random", STUDENT_STEPS)
    scores = out_dir / "scores"
    checkpoints = [out_dir / path for path in _SCORED.values()]
    task_file = str(task / f"{TASK}.yaml")
    _stage(
        "score every model on held-out text",
        scores / "results.json",
        lambda: evaluate(checkpoints, tasks=task_file, val_data=data, out_dir=scores),
    )
    results = json.loads((scores / "results.json").read_text(encoding="utf-8"))
    rows = dict(zip(_SCORED, map(_row, _SCORED, results["checkpoints"]), strict=True))
    text = table(list(rows.values())) + "\n" + conclusion(rows)
    (out_dir / "results.md").write_text(text, encoding="utf-8")
    plot(out_dir / "results.png", {name: out_dir / name / "metrics.csv" for name in ("slice", "random")}, rows)
    print(f"\n{text}\nwrote {out_dir}/results.md and {out_dir}/results.png in {time.monotonic() - start:.0f} s")


def _stage(what: str, done: Path, work: Callable[[], Any]) -> None:
    """Do one part of the demo, unless its folder is already there."""
    if done.exists():
        print(f"demo: {what}: there already", file=sys.stderr)
        return
    print(f"demo: {what}", file=sys.stderr, flush=True)
    work()


def _fill(folder: Path, write: Callable[[Path], Any]) -> None:
    with new_folder(folder) as staging:
        write(staging)


def _held_out_texts(corpus: Path) -> list[str]:
    """The documents that ``prepare`` keeps for validation."""
    return [text for text in iter_documents(corpus) if is_validation(text, _VAL_FRACTION)]


def _train(out_dir: Path, name: str, ref: Path, n_layer: int, init: Literal["inherit", "random"], steps: int) -> None:
    initial, run_dir = out_dir / f"{name}-start", out_dir / name
    made = "first layers of the reference" if init == "inherit" else "random weights"
    _stage(
        f"make {name}: {n_layer} layers, {made}",
        initial,
        lambda: slice_model(SliceArgs(str(ref), n=n_layer, out_dir=initial, init=init)),
    )
    train = TrainArgs(
        global_batch_size=16,
        micro_batch_size=16,
        max_steps=steps,
        lr_warmup_steps=20,
        min_lr=1e-4,
        log_interval=10,
        save_interval=100,
    )
    _stage(f"train {name}", run_dir / "final", lambda: _pretrain(initial, out_dir / "data", run_dir, train))


def _pretrain(initial: Path, data: Path, run_dir: Path, train: TrainArgs) -> None:
    result = pretrain(
        PretrainArgs(
            initial,
            data,
            run_dir,
            train=train,
            eval=EvalArgs(interval=25, max_iters=8),
            optimizer=OptimizerArgs(lr=2e-3),
            precision="32-true",
        )
    )
    if result.final is None:  # SIGTERM: what is done is kept, and the same command goes on from there
        raise SystemExit(0)


def _row(name: str, scored: dict[str, Any]) -> Row:
    held_out, accuracy = scored["held_out"], scored["tasks"][TASK]["acc"]
    return Row(
        name=name,
        n_layer=scored["n_layer"],
        parameters=scored["parameters"],
        tokens=scored["manifest"].get("tokens", 0),
        val_loss=(held_out["loss"], held_out["stderr"]),
        accuracy=(accuracy["value"], accuracy["stderr"]),
    )
