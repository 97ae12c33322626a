"""Experiments: make a start, train it, read what came out; continued after a kill, side by side where wanted."""

import logging
import math
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Generic, TypeVar

from matplotlib.axes import Axes

import inheritune_lit as lit
from inheritune_lit.errors import UserError
from inheritune_lit.io.executors import open_executor
from inheritune_lit.io.folders import new_folder
from inheritune_lit.io.plotting import draw_curve, engineering_ticks
from inheritune_lit.studies.args import AblateArgs, GrowArgs

logger = logging.getLogger(__name__)
Record = TypeVar("Record")


@dataclass(frozen=True)
class Experiment:
    """One training of a study."""

    name: str  # unique in its study
    title: str  # as tables name it; experiments of one title differ in their seeds only
    start: lit.SliceArgs  # the slice that ``training`` starts from; experiments may share one
    training: lit.PretrainArgs
    groups: tuple[str, ...] = ()  # tables and figures that it is part of

    def needs(self, other: "Experiment") -> bool:
        """Whether it starts from, or learns from, the checkpoint that another one makes."""
        return str(other.training.out_dir / lit.FINAL) in (self.start.ref, self.training.distill.teacher)


@dataclass(frozen=True)
class ExperimentResult:
    """What an experiment came to; losses are held-out, in nats per token."""

    name: str
    title: str
    groups: tuple[str, ...]
    seed: int  # of the data order, and of weights that are not inherited
    layers: list[int] | None  # of the reference, None for fresh weights
    n_layer: int
    n_embd: int
    parameters: int
    steps: int
    tokens: int  # trained on, those of what it started from left out
    flops: float  # of its training, a teacher's forward passes included
    seconds: float
    untrained: float | None  # loss before training, None where it was not measured
    val_loss: float
    val_stderr: float  # over samples
    curve: list[tuple[int, float]]  # tokens and loss of each validation


@dataclass(frozen=True)
class SeedSummary:
    """Experiments of one title over all seeds: held-out losses in nats per token; a deviation of one seed is NaN."""

    title: str
    seeds: list[int]
    layers: list[int] | None  # of the reference, None for fresh weights
    untrained: float  # mean before training, NaN where it was not measured
    loss: float
    std: float
    low: float
    high: float
    stderr: float  # mean standard error of the single losses over the held-out samples
    difference: float  # loss minus the baseline's, mean and sample deviation seed by seed
    difference_std: float
    paired: int  # seeds that the baseline has too
    lower_in: int  # seeds in which the loss is lower than the baseline's
    same_as: str | None = None  # an earlier title with the same layers, and so with the same experiments


@dataclass(frozen=True)
class StudyResult(Generic[Record]):
    """Outcome of a study: what it found, None where it was not run to an end, and as text what is printed."""

    record: Record | None = None
    text: str = ""

    def __str__(self) -> str:
        return self.text


def by_title(results: Sequence[ExperimentResult], group: str | None = None) -> dict[str, list[ExperimentResult]]:
    """The experiments of a group, all when None, by title, in their order."""
    found: dict[str, list[ExperimentResult]] = {}
    for each in results:
        if group is None or group in each.groups:
            found.setdefault(each.title, []).append(each)
    return found


def summarize(runs: Sequence[ExperimentResult], baseline: Sequence[ExperimentResult]) -> SeedSummary:
    """Puts the seeds of one title together, and compares them with another title's."""
    losses, differences = [run.val_loss for run in runs], differences_by_seed(runs, baseline)
    return SeedSummary(
        title=runs[0].title,
        seeds=[run.seed for run in runs],
        layers=runs[0].layers,
        untrained=fmean(math.nan if run.untrained is None else run.untrained for run in runs),
        loss=fmean(losses),
        std=stdev(losses) if len(losses) > 1 else math.nan,
        low=min(losses),
        high=max(losses),
        stderr=fmean(run.val_stderr for run in runs),
        difference=fmean(differences) if differences else math.nan,
        difference_std=stdev(differences) if len(differences) > 1 else math.nan,
        paired=len(differences),
        lower_in=sum(difference < 0 for difference in differences),
    )


def differences_by_seed(runs: Sequence[ExperimentResult], baseline: Sequence[ExperimentResult]) -> list[float]:
    """Losses of one title minus another's, where that has the same seed."""
    theirs = {run.seed: run.val_loss for run in baseline}
    return [run.val_loss - theirs[run.seed] for run in runs if run.seed in theirs]


def draw_mean_curve(axes: Axes, number: int, runs: Sequence[ExperimentResult], start: float = 0.0) -> None:
    """Draws held-out loss against tokens, from ``start`` on, the mean over the seeds, in the style of the number."""
    validations = [each for each in zip(*(run.curve for run in runs), strict=True) if each[0][0] >= start]
    tokens = [each[0][0] for each in validations]
    losses = [fmean(loss for _, loss in each) for each in validations]
    draw_curve(axes, number, tokens, losses, runs[0].title)
    axes.set_xlabel("tokens trained")
    engineering_ticks(axes.xaxis)


def make_once(path: Path, what: str, make: Callable[[], Any]) -> None:
    """Makes a file or folder, unless it is there already."""
    if path.exists():
        logger.info("%s: there already", what)
    else:
        logger.info(what)
        make()


def fill_once(folder: Path, what: str, write: Callable[[Path], Any]) -> None:
    """Makes a folder that appears whole, unless it is there already; ``write`` gets the empty folder."""

    def fill() -> None:
        with new_folder(folder) as staging:
            write(staging)

    make_once(folder, what, fill)


def training_of(args: GrowArgs | AblateArgs, start: Path, out_dir: Path, **changes: Any) -> lit.PretrainArgs:
    """The arguments of ``pretrain`` for one training of a study: the study's own, with changes."""
    shared = {each.name: getattr(args, each.name) for each in fields(lit.TrainingArgs)}
    return lit.PretrainArgs(start, args.data, out_dir, **shared | changes)


def _read_result(experiment: Experiment) -> ExperimentResult:
    folder = experiment.training.out_dir
    run: Any = lit.read_run(folder)
    try:
        final, curve = run.final, run.curve
        return ExperimentResult(
            **{name: getattr(experiment, name) for name in ("name", "title", "groups")},
            **{name: getattr(run.config, name) for name in ("n_layer", "n_embd")},
            **{name: final[name] for name in ("steps", "tokens", "val_loss", "val_stderr")},
            seed=experiment.training.seed,
            layers=run.slice["layers"],
            parameters=run.slice["parameters"]["total"],
            flops=final["tokens"] * run.flops_per_token,
            seconds=run.rows[-1]["seconds"],
            untrained=curve[0][1] if curve and curve[0][0] == 0 else None,
            curve=curve,
        )
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        problem = f"{folder} does not hold a finished run that starts from a slice ({error})"
        remedy = "remove it and its -start folder or slice, and the same command makes them again"
        raise UserError(f"{problem}; {remedy}") from error


def run_experiments(
    experiments: list[Experiment],
    num_workers: int = 1,
    cluster: str | None = None,
    record: Callable[[list[ExperimentResult]], Any] | None = None,
) -> list[ExperimentResult]:
    """Runs experiments, which come in an order that works; what is done already is only read.

    Args:
        num_workers: how many run side by side, in processes of this machine.
        cluster: address of a Dask scheduler whose workers run them instead; they see the same folders.
        record: gets the results so far, in the order of the experiments, after each one.

    Returns the results in that order; fewer where SIGTERM or a time limit stopped one. The same call continues. One
    that fails, with a ``UserError``, stops those beside it; Ctrl-C saves first.
    """
    names, found = [one.name for one in experiments], list[ExperimentResult]()
    with open_executor(num_workers, cluster, partial(_start_worker, num_workers)) as executor:
        for experiment in _one_by_one(experiments) if executor is None else _side_by_side(experiments, executor):
            found = sorted([*found, _read_result(experiment)], key=lambda result: names.index(result.name))
            if record is not None:
                record(found)
    return found


def _make_start(experiment: Experiment) -> None:
    if not experiment.training.initial_checkpoint_dir.exists():
        lit.slice_model(experiment.start)


def _one_by_one(experiments: list[Experiment]) -> Iterator[Experiment]:
    for number, experiment in enumerate(experiments, start=1):
        logger.info("experiment %d of %d: %s", number, len(experiments), experiment.name)
        _make_start(experiment)
        if lit.pretrain(experiment.training).final is None:
            return
        yield experiment


def _side_by_side(experiments: list[Experiment], executor: Executor) -> Iterator[Experiment]:
    waiting, running = list(experiments), dict[Future[bool], Experiment]()
    others = set(multiprocessing.active_children())
    with lit.stop_requests() as stop:
        while (waiting and not stop) or running:
            ahead = [*waiting, *running.values()]
            for experiment in [one for one in waiting if not (stop or any(map(one.needs, ahead)))]:
                waiting.remove(experiment)
                logger.info("%s: started, %d are waiting", experiment.name, len(waiting))
                _make_start(experiment)  # here, because experiments may share one
                running[executor.submit(_train_in_worker, experiment.training)] = experiment
            finished, _ = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
            for future in finished:
                experiment = running.pop(future)
                if future.cancelled():
                    continue
                try:
                    complete = future.result()
                except BrokenExecutor:
                    if not stop:
                        raise
                    complete = False  # told to stop before it was ready to be told
                if complete:
                    yield experiment
                    logger.info("%s: done, %d are running", experiment.name, len(running))
                else:
                    stop.append(signal.SIGTERM)  # as if this process had been told to
            if stop:
                for future in running:
                    future.cancel()
                # The processes of a pool save; a cluster's workers finish alone.
                for worker in set(multiprocessing.active_children()) - others:
                    worker.terminate()
                    others.add(worker)  # a second signal would end it without saving
    if signal.SIGINT in stop:
        raise KeyboardInterrupt


_stopped: threading.Event | None = None  # in a process of a pool: whether it was told to stop and leaves the rest alone


def _start_worker(num_workers: int) -> None:
    """Prepares a process of a pool: silent, and with its share of the cores."""
    global _stopped
    import torch

    stopped = _stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    os.setpgrp()  # the terminal's Ctrl-C goes to the study's process alone, which tells this one
    sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    torch.set_num_threads(max(1, torch.get_num_threads() // num_workers))


def _train_in_worker(training: lit.PretrainArgs) -> bool:
    """Whether the training ran to its end."""
    if _stopped is not None and _stopped.is_set():
        return False
    finished = lit.pretrain(training).final is not None
    if _stopped is not None and not finished:
        _stopped.set()
    return finished
