"""``inheritune eval``: suites, lm-eval tasks and held-out loss for one or several checkpoints."""

import logging
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from inheritune_lit.checkpoint.config import load_config
from inheritune_lit.checkpoint.folder import is_litgpt_folder
from inheritune_lit.data.packed import check_fits_model
from inheritune_lit.errors import UserError
from inheritune_lit.evaluation.args import EvaluateArgs
from inheritune_lit.evaluation.cells import CheckpointScores, cells_of
from inheritune_lit.evaluation.loading import LoadedTask, fetch_rows, load_tasks
from inheritune_lit.evaluation.results import HELD_OUT, ResultFolder, results_csv, results_markdown
from inheritune_lit.evaluation.score_cache import Ranks
from inheritune_lit.evaluation.scorer import CheckpointScorer, held_out_settings
from inheritune_lit.evaluation.suite import MMLU, Suite, load_suite, suite_of_tasks
from inheritune_lit.evaluation.tasks import TaskResolver
from inheritune_lit.inherit.reference import open_reference
from inheritune_lit.io.machine import handle_signals
from inheritune_lit.io.manifest import read_manifest
from inheritune_lit.model.devices import device_count, has_native_bf16, launch, on_first_rank, tell_bf16

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluationResult:
    """What ``evaluate`` found, with the settings that all scores have in common; ``str()`` of it is ``text``."""

    settings: dict[str, Any]
    checkpoints: list[CheckpointScores]
    text: str  # the table as Markdown, empty where this process is not the first or rows were only fetched
    fetched: dict[str, dict[str, int] | None] | None = None  # rows per split by task, None of one that was there

    def __str__(self) -> str:
        return self.text

    def record(self) -> dict[str, Any]:
        """What ``results.json`` holds."""
        return {"settings": self.settings, "checkpoints": [asdict(each) for each in self.checkpoints]}


def evaluate(args: EvaluateArgs) -> EvaluationResult:
    """Score checkpoints side by side, or continue in ``args.out_dir``, or fetch rows; bad input is a ``UserError``."""
    suite = load_suite(args.suite) if args.suite else suite_of_tasks(args.tasks)
    if args.fetch_data is not None:
        return EvaluationResult({}, [], "", fetch_rows(args.fetch_data, suite))
    checkpoints = _checkpoints(args.checkpoint_dir or [], args.val_data)
    fabric = launch(device_count(args.devices, args.num_nodes), args.num_nodes)
    ranks = Ranks.of(fabric)
    args = replace(args, dtype=args.dtype or ("bfloat16" if has_native_bf16() else "float32"))
    if ranks.is_first:
        tell_bf16(ranks.device, args.dtype == "bfloat16")
    settings = {
        "suite": suite.name if suite.columns else None,
        **{name: getattr(args, name) for name in ("limit", "num_fewshot", "dtype", "quantize", "bos")},
        "device": ranks.device.type,
        **held_out_settings(args),
        "checkpoints": list(checkpoints),
        "columns": [column.task for column in suite.columns],
    }
    folder = ResultFolder(args.out_dir, settings) if args.out_dir is not None else None
    with ExitStack() as stack:
        stack.enter_context(_stop_at_once(args, ranks))
        if folder is not None:
            stack.enter_context(on_first_rank(fabric, folder.own()))
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="inheritune-eval-")))
        suite, loaded, leaves = _load(suite, args, scratch, ranks)
        scorer = CheckpointScorer(args, loaded, ranks, folder)
        for name, path in checkpoints.items():
            scorer.check(name, path)
        done = [scorer.score(name, path) for name, path in checkpoints.items()]
        by_column = [{asked: [records[leaf] for leaf in leaves[asked]] for asked in leaves} for records in done]
        scores: list[CheckpointScores] = []
        for (name, path), records, ours in zip(checkpoints.items(), done, by_column, strict=True):
            identity = next(iter(records.values()))["identity"]
            held_out = records.pop(HELD_OUT, None)
            scores.append(
                CheckpointScores(
                    name=name,
                    path=str(path),
                    **{key: identity[key] for key in ("weights_sha256", "tokenizer_sha256", "n_layer", "parameters")},
                    manifest=read_manifest(path),
                    held_out=held_out,
                    tasks={task: record["scores"] for task, record in records.items()},
                    truncated=sum(record["truncated"] for record in records.values()),
                    seconds=round(sum(record["seconds"] for record in records.values()), 1),
                    cells=cells_of(suite, ours, by_column[0] if scores else None),
                )
            )
        if not ranks.is_first:
            return EvaluationResult(settings, scores, "")
        result = EvaluationResult(settings, scores, results_markdown(suite, scores, args.limit))
        if folder is not None:
            folder.write_summary(result.record(), result.text, results_csv(suite, scores))
        return result


def _checkpoints(checkpoint_dirs: list[Path], val_data: Path | None) -> dict[str, Path]:
    """Folders by a short name (a run's for its ``final``), all checked first; by their whole path where names clash."""
    for checkpoint_dir in checkpoint_dirs:
        if is_litgpt_folder(checkpoint_dir) or not checkpoint_dir.is_dir():
            config = load_config(checkpoint_dir)
        else:
            config = open_reference(checkpoint_dir, org="local").config
        if val_data is not None:
            check_fits_model(val_data, checkpoint_dir, config.padded_vocab_size)
    named = [Path(os.path.normpath(path.absolute())) for path in checkpoint_dirs]
    short = [path.parent.name if path.name == "final" else path.name for path in named]
    pairs = zip(short, checkpoint_dirs, strict=True)
    return {str(path) if short.count(name) > 1 else name: path for name, path in pairs}


def _load(
    suite: Suite, args: EvaluateArgs, scratch: Path, ranks: Ranks
) -> tuple[Suite, list[LoadedTask], dict[str, list[str]]]:
    """The suite, groups as columns of their own, its tasks with their rows, and lm-eval's names by the suite's."""
    if not suite.columns:
        return suite, [], {}
    import datasets  # the data library and lm-eval announce every step; ours are announced once

    datasets.disable_progress_bars()
    os.environ.setdefault("LOGLEVEL", "ERROR")
    os.environ.setdefault("DISABLE_MULTIPROC", "1")  # lm-eval would fork this process to resample; the result is equal
    for name in ("lm_eval", "lm-eval", "datasets"):
        logging.getLogger(name).setLevel(logging.ERROR)
    shots = {column.task: column.num_fewshot for column in suite.columns}
    resolved = TaskResolver(args.data_dir, args.num_fewshot, scratch).resolve(list(shots), shots)
    if ranks.is_first:
        count = len(resolved.each())
        logger.info("reading the rows of %d task%s", count, "s" * (count > 1))
    if HELD_OUT in resolved.each():
        raise UserError(f"a task is called {HELD_OUT!r}, as the result of --val_data is; rename it")
    leaves, columns = dict(resolved.leaves), []
    for column in suite.columns:
        names = leaves[column.task]
        if column.task == MMLU or len(names) == 1:
            columns.append(column)
            continue
        leaves |= {name: [name] for name in names}
        columns += [replace(column, title=f"{column.title} {name}", task=name) for name in names]
    loaded = load_tasks(resolved, args.limit)
    tasks = {task.name: task.task for task in loaded}
    for column in columns:
        task = tasks[leaves[column.task][0]]
        metrics, filters = list(task.aggregation()), [each.name for each in getattr(task, "_filters", [])]
        metric, _, chosen = column.metric.partition(",")
        if metric and (metric not in metrics or (chosen and chosen not in filters)):
            known = f"{', '.join(metrics)}" + f" with the filters {', '.join(filters)}" * (len(filters) > 1)
            raise UserError(f"task {column.task!r} has no metric {column.metric!r}; it has {known}")
    return replace(suite, columns=columns), loaded, leaves


@contextmanager
def _stop_at_once(args: EvaluateArgs, ranks: Ranks) -> Iterator[None]:
    """While the block runs, SIGTERM and Ctrl-C end it, after a line that says what is kept."""
    kept, stderr = args.out_dir or args.cache_dir, sys.stderr

    def stop(number: int, frame: object) -> None:
        if ranks.is_first:
            # The signal may come in the middle of another line, or of what lm-eval must not show.
            with suppress(RuntimeError), redirect_stderr(stderr):
                logger.info(f"stopping; what is scored is in {kept}, the same command continues" if kept else "stopped")
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)

    with handle_signals(stop, signal.SIGTERM, signal.SIGINT):
        yield
