"""``inheritune eval``: suites, lm-eval tasks and held-out loss for one or several checkpoints."""

import logging
import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from inheritune_lit.checkpoint.config import load_config
from inheritune_lit.checkpoint.folder import is_litgpt_folder
from inheritune_lit.data.packed import check_fits_model
from inheritune_lit.errors import UserError
from inheritune_lit.evaluation.args import EvaluateArgs
from inheritune_lit.evaluation.cells import Cell, cells_of
from inheritune_lit.evaluation.fetch import fetch_rows
from inheritune_lit.evaluation.loading import LoadedTask, load_tasks
from inheritune_lit.evaluation.ranks import Ranks
from inheritune_lit.evaluation.result_folder import ResultFolder
from inheritune_lit.evaluation.scorer import HELD_OUT, CheckpointScorer, held_out_settings
from inheritune_lit.evaluation.suite import Suite, load_suite, suite_of_tasks
from inheritune_lit.evaluation.tables import results_csv, results_markdown
from inheritune_lit.evaluation.tasks import TaskResolver
from inheritune_lit.inherit.reference import open_reference
from inheritune_lit.io.manifest import read_manifest

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CheckpointScores:
    """What a checkpoint scored.

    Attributes:
        name: a short one, as tables have it.
        path: of its folder.
        weights_sha256, tokenizer_sha256, n_layer, parameters: what it is.
        manifest: of its folder, None where it has none.
        held_out: loss on packed data in nats per token, None where none was asked for.
        tasks: ``{task: {metric: {"value", "stderr", "n", ...}}}``.
        truncated: prompts that lost their beginning.
        seconds: of scoring, over all attempts.
        cells: of the table.
    """

    name: str
    path: str
    weights_sha256: str
    tokenizer_sha256: str
    n_layer: int
    parameters: int
    manifest: dict[str, Any] | None
    held_out: dict[str, Any] | None
    tasks: dict[str, dict[str, Any]]
    truncated: int
    seconds: float
    cells: list[Cell]


@dataclass(frozen=True)
class EvaluationResult:
    """What ``evaluate`` found; ``str()`` of it is the table.

    Attributes:
        settings: what all scores have in common.
        checkpoints: in the order in which they were given.
        text: the table as Markdown; empty where this process is not the first, or rows were only fetched.
        fetched: with ``fetch_data``, rows per split of each task, None for a task that was there already.
    """

    settings: dict[str, Any]
    checkpoints: list[CheckpointScores]
    text: str
    fetched: dict[str, dict[str, int] | None] | None = None

    def __str__(self) -> str:
        return self.text

    def record(self) -> dict[str, Any]:
        """What ``results.json`` holds."""
        return {"settings": self.settings, "checkpoints": [asdict(each) for each in self.checkpoints]}


def evaluate(args: EvaluateArgs) -> EvaluationResult:
    """Score checkpoints side by side, or fetch the rows for it.

    Results appear in ``args.out_dir`` as tasks finish, and the same call continues there.

    Raises:
        UserError: bad input; nothing is written.
    """
    chosen = load_suite(args.suite) if args.suite else suite_of_tasks(args.tasks) if args.tasks else None
    if args.fetch_data is not None:
        assert chosen is not None, "checked by EvaluateArgs"
        return EvaluationResult({}, [], "", fetch_rows(args.fetch_data, chosen))
    checkpoint_dirs = args.checkpoint_dir or []
    _check_checkpoints(checkpoint_dirs, args.val_data)
    ranks = Ranks.start(args.devices, args.num_nodes)
    names = _names(checkpoint_dirs)
    settings = {
        "suite": chosen.name if chosen else None,
        "limit": args.limit,
        "num_fewshot": args.num_fewshot,
        "dtype": args.dtype,
        "quantize": args.quantize,
        "bos": args.bos,
        "device": ranks.device.type,
        **held_out_settings(args),
        "checkpoints": names,
        "columns": [column.task for column in chosen.columns] if chosen else [],
    }
    folder = ResultFolder(args.out_dir, settings) if args.out_dir is not None else None
    with tempfile.TemporaryDirectory(prefix="inheritune-eval-") as scratch:
        loaded, leaves = _load(chosen, args, Path(scratch), ranks)
        scorer = CheckpointScorer(args, loaded, ranks, folder)
        for name, checkpoint_dir in zip(names, checkpoint_dirs, strict=True):
            scorer.check(name, checkpoint_dir)
        done = [scorer.score(name, path) for name, path in zip(names, checkpoint_dirs, strict=True)]
    by_column = [{asked: [records[leaf] for leaf in leaves[asked]] for asked in leaves} for records in done]
    scores = []
    for number, (name, path) in enumerate(zip(names, checkpoint_dirs, strict=True)):
        cells = cells_of(chosen, by_column[number], by_column[0] if number else None) if chosen else []
        scores.append(_scores(name, path, done[number], cells))
    if not ranks.is_first:
        return EvaluationResult(settings, scores, "")
    result = EvaluationResult(settings, scores, results_markdown(chosen, scores, args.limit))
    if folder is not None:
        folder.write_summary(result.record(), result.text, results_csv(chosen, scores))
    return result


def _check_checkpoints(checkpoint_dirs: list[Path], val_data: Path | None) -> None:
    """Look at every checkpoint before the first hour is spent on the first of them."""
    for checkpoint_dir in checkpoint_dirs:
        if is_litgpt_folder(checkpoint_dir) or not checkpoint_dir.is_dir():
            load_config(checkpoint_dir)
        else:
            open_reference(checkpoint_dir, org="local")
        if val_data is not None:
            check_fits_model(val_data, checkpoint_dir, load_config(checkpoint_dir).padded_vocab_size)


def _scores(name: str, checkpoint_dir: Path, records: dict[str, dict[str, Any]], cells: list[Cell]) -> CheckpointScores:
    same = next(iter(records.values()))["identity"]
    tasks = {task: record for task, record in records.items() if task != HELD_OUT}
    return CheckpointScores(
        name=name,
        path=str(checkpoint_dir),
        weights_sha256=same["weights_sha256"],
        tokenizer_sha256=same["tokenizer_sha256"],
        n_layer=same["n_layer"],
        parameters=same["parameters"],
        manifest=read_manifest(checkpoint_dir),
        held_out=records.get(HELD_OUT),
        tasks={task: record["scores"] for task, record in tasks.items()},
        truncated=sum(record["truncated"] for record in tasks.values()),
        seconds=round(sum(record["seconds"] for record in tasks.values()), 1),
        cells=cells,
    )


def _load(
    suite: Suite | None, args: EvaluateArgs, scratch: Path, ranks: Ranks
) -> tuple[list[LoadedTask], dict[str, list[str]]]:
    """The suite's tasks with their rows, and lm-eval's names by what the suite calls them."""
    if suite is None:
        return [], {}
    _quieten()
    shots = {column.task: column.num_fewshot for column in suite.columns}
    resolved = TaskResolver(args.data_dir, args.num_fewshot, scratch).resolve(list(shots), shots)
    if ranks.is_first:
        count = len(resolved.names)
        logger.info("reading the rows of %d task%s", count, "s" * (count > 1))
    loaded = load_tasks(resolved, args.limit)
    _check_metrics(suite, loaded, resolved.leaves)
    return loaded, resolved.leaves


def _check_metrics(suite: Suite, loaded: list[LoadedTask], leaves: dict[str, list[str]]) -> None:
    known = {task.name: list(task.task.aggregation()) for task in loaded}
    for column in suite.columns:
        metrics = known[leaves[column.task][0]]
        if column.metric and column.metric not in metrics:
            raise UserError(f"task {column.task!r} has no metric {column.metric!r}; it has {', '.join(metrics)}")


def _names(checkpoint_dirs: list[Path]) -> list[str]:
    """A short name for each: the folder's, or its parent's for a run's ``final``; the whole path where those clash."""
    short = [path.parent.name if path.name == "final" else path.name for path in map(Path.absolute, checkpoint_dirs)]
    return [str(path) if short.count(name) > 1 else name for name, path in zip(short, checkpoint_dirs, strict=True)]


def _quieten() -> None:
    """lm-eval and datasets announce every step; ours are announced once."""
    import datasets

    datasets.disable_progress_bars()
    os.environ.setdefault("LOGLEVEL", "ERROR")
    for name in ("lm_eval", "lm-eval", "datasets"):
        logging.getLogger(name).setLevel(logging.ERROR)
