"""Experiments: make a start, train it, read what came out; continued after a kill, side by side where wanted."""

import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from inheritune_lit import PretrainArgs, RunResult, pretrain, read_run
from inheritune_lit.io.executors import open_executor
from inheritune_lit.io.folders import new_folder

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Experiment:
    """One training of a study.

    Attributes:
        name: unique in its study.
        title: as tables name it; experiments of one title differ in their seeds only.
        start: makes the checkpoint ``training.initial_checkpoint_dir``; None where it is there already.
        training: arguments of ``pretrain``.
        after: names of the experiments whose checkpoints it needs.
        groups: tables and figures that it is part of.
    """

    name: str
    title: str
    start: Callable[[], Any] | None
    training: PretrainArgs
    after: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()


@dataclass(frozen=True)
class ExperimentResult:
    """What an experiment came to.

    Attributes:
        seed: of the data order, and of weights that are not inherited.
        layers: of the reference, None for fresh weights.
        tokens: trained on, those of what it started from left out.
        flops: of its training, a teacher's left out.
        untrained: held-out loss before training, None where it was not measured.
        val_loss, val_stderr: held-out loss after training in nats per token, and its standard error over samples.
        curve: tokens and held-out loss of each validation.
    """

    name: str
    title: str
    groups: tuple[str, ...]
    seed: int
    layers: list[int] | None
    n_layer: int
    n_embd: int
    parameters: int
    steps: int
    tokens: int
    flops: float
    seconds: float
    untrained: float | None
    val_loss: float
    val_stderr: float
    curve: list[tuple[int, float]]


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


def run_experiment(experiment: Experiment, **more: Any) -> RunResult:
    """Makes the start where it is missing, and trains; ``final`` of the result is None where training was stopped.

    Args:
        **more: further arguments of ``pretrain``.
    """
    make_start(experiment)
    return pretrain(experiment.training, **more)


def make_start(experiment: Experiment) -> None:
    """Makes the checkpoint that an experiment starts from, where it is missing."""
    if experiment.start is not None and not experiment.training.initial_checkpoint_dir.exists():
        experiment.start()


def read_result(experiment: Experiment) -> ExperimentResult:
    """Reads the result of a finished experiment from its run folder."""
    run = read_run(experiment.training.out_dir)
    assert run is not None and run.final is not None and run.config is not None and run.slice is not None
    assert run.flops_per_token is not None
    return ExperimentResult(
        name=experiment.name,
        title=experiment.title,
        groups=experiment.groups,
        seed=experiment.training.seed,
        layers=run.slice["layers"],
        n_layer=run.config.n_layer,
        n_embd=run.config.n_embd,
        parameters=run.slice["parameters"]["total"],
        steps=run.final["steps"],
        tokens=run.final["tokens"],
        flops=run.final["tokens"] * run.flops_per_token,
        seconds=run.rows[-1]["seconds"],
        untrained=run.curve[0][1] if run.curve and run.curve[0][0] == 0 else None,
        val_loss=run.final["val_loss"],
        val_stderr=run.final["val_stderr"],
        curve=run.curve,
    )


def run_experiments(
    experiments: list[Experiment],
    num_workers: int = 1,
    cluster: str | None = None,
    record: Callable[[list[ExperimentResult]], Any] | None = None,
) -> list[ExperimentResult]:
    """Runs experiments, each after those that it needs; what is done already is only read.

    Args:
        experiments: in an order that works.
        num_workers: how many run side by side, in processes of this machine.
        cluster: address of a Dask scheduler whose workers run them instead; they see the same folders.
        record: gets the results so far, in the order of the experiments, after each one.

    Returns:
        The results in the order of the experiments; fewer than these where SIGTERM or a time limit stopped one. The
        same call continues.

    Raises:
        UserError: an experiment failed; those that ran beside it are stopped.
        KeyboardInterrupt: after saving, when stopped with Ctrl-C.
    """
    results: dict[str, ExperimentResult] = {}

    def take_up(experiment: Experiment) -> None:
        results[experiment.name] = read_result(experiment)
        if record is not None:
            record([results[one.name] for one in experiments if one.name in results])

    with open_executor(num_workers, cluster, partial(_start_worker, num_workers)) as executor:
        if executor is not None:
            _run_side_by_side(experiments, executor, take_up)
        else:
            for number, experiment in enumerate(experiments, start=1):
                logger.info("experiment %d of %d: %s", number, len(experiments), experiment.name)
                if run_experiment(experiment).final is None:
                    break
                take_up(experiment)
    return [results[one.name] for one in experiments if one.name in results]


def _run_side_by_side(experiments: list[Experiment], executor: Executor, take_up: Callable[[Experiment], None]) -> None:
    waiting, running, done = list(experiments), dict[Future[bool], Experiment](), set[str]()
    others = set(multiprocessing.active_children())
    with _stop_signals() as stop:
        while (waiting and not stop) or running:
            for experiment in [one for one in waiting if done.issuperset(one.after) and not stop]:
                waiting.remove(experiment)
                logger.info("%s: started, %d are waiting", experiment.name, len(waiting))
                make_start(experiment)  # here, because experiments may share one
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
                if not complete:
                    stop.append(signal.SIGTERM)  # as if this process had been told to
                    continue
                done.add(experiment.name)
                take_up(experiment)
                logger.info("%s: done, %d are running", experiment.name, len(running))
            if stop:
                _stop_workers(running, others)
    if signal.SIGINT in stop:
        raise KeyboardInterrupt


def _stop_workers(running: dict[Future[bool], Experiment], others: set[Any]) -> None:
    """Cancels what has not started, and tells the processes of a pool to save; a cluster's workers finish alone."""
    for future in running:
        future.cancel()
    for worker in set(multiprocessing.active_children()) - others:
        worker.terminate()
        others.add(worker)  # a second signal would end it without saving


@contextmanager
def _stop_signals() -> Iterator[list[signal.Signals]]:
    """Yields a list that takes up SIGTERM and SIGINT while the block runs."""
    received: list[signal.Signals] = []
    if threading.current_thread() is not threading.main_thread():
        yield received  # Python lets only the main thread handle signals
        return
    signals = (signal.SIGTERM, signal.SIGINT)
    before = {one: signal.signal(one, lambda number, _: received.append(signal.Signals(number))) for one in signals}
    try:
        yield received
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


_stopped: threading.Event | None = None
"""In a process of a pool: set when it was told to stop, which leaves its further experiments alone."""


def _start_worker(num_workers: int) -> None:
    """Prepares a process of a pool: silent, and with its share of the cores."""
    global _stopped
    import torch

    stopped = _stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    os.setpgrp()  # the terminal's Ctrl-C goes to the study's process alone, which tells this one
    sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    torch.set_num_threads(max(1, torch.get_num_threads() // num_workers))


def _train_in_worker(training: PretrainArgs) -> bool:
    """Whether the training ran to its end."""
    if _stopped is not None and _stopped.is_set():
        return False
    finished = pretrain(training).final is not None
    if _stopped is not None and not finished:
        _stopped.set()
    return finished
