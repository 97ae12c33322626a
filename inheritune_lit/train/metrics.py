"""Metrics of a run: always ``metrics.csv``, and TensorBoard, Weights & Biases or MLflow on top when asked for."""

import csv
import io
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from inheritune_lit.errors import UserError
from inheritune_lit.io.folders import replace_file
from inheritune_lit.io.manifest import read_manifest
from inheritune_lit.io.reading import read_text
from inheritune_lit.train.args import LoggerName

METRICS = "metrics.csv"
_REMEDY = "restore it, or remove it to go on without its rows"
_STEP = re.compile("[0-9]{1,15}")
_MEASURED = "step tokens loss lr grad_norm skipped tokens_per_s mfu memory_gb seconds val_loss val_stderr"
Row = dict[str, float | int]


class MetricsLog:
    """One row per logged step of the run that has this folder.

    Each of the validation data's ``domains`` has a column ``val_loss/<domain>`` where there are several.
    """

    def __init__(self, folder: Path, logger_name: LoggerName = "csv", domains: Sequence[str] = ()) -> None:
        self.path, self.logger_name = folder / METRICS, logger_name
        self._columns = (*_MEASURED.split(), *(f"val_loss/{domain}" for domain in domains if len(domains) > 1))

    def open(self, resumed_step: int) -> None:
        """Begin, or continue after ``resumed_step``: rows after it are dropped so that none appears twice."""
        kept = [row for row in read_metrics(self.path) if int(row["step"]) <= resumed_step and resumed_step > 0]

        def write_rows(path: Path) -> None:
            with path.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, self._columns, restval="", extrasaction="ignore")
                writer.writeheader()
                writer.writerows(kept)

        replace_file(self.path, write_rows)  # a kill here must not cost the rows that are there
        self._send, self._finish = _open_logger(self.logger_name, self.path.parent, resumed_step)

    def write(self, row: Row) -> None:
        """Append one row; columns that are not measured at this step are left empty."""
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self._columns, extrasaction="ignore").writerow(row)
        self._send(int(row["step"]), {column: value for column, value in row.items() if column != "step"})

    def close(self) -> None:
        """Flush what the logger holds, after ``open``."""
        self._finish()


def _open_logger(
    kind: LoggerName, folder: Path, resumed_step: int
) -> tuple[Callable[[int, Row], None], Callable[[], None]]:
    """What takes a step and its values, and what flushes and ends the logger."""
    if kind == "csv":
        return (lambda step, values: None), (lambda: None)
    if kind == "tensorboard":
        from torch.utils.tensorboard import SummaryWriter

        events = SummaryWriter(folder / "tensorboard", purge_step=resumed_step + 1)

        def send(step: int, values: Row) -> None:
            for column, value in values.items():
                events.add_scalar(column, value, step)

        return send, events.close
    # An identity of its own, so that a restarted run continues its curve, and no other run of this name does.
    name = folder.name
    identity = (read_manifest(folder) or {}).get("id") or name
    if kind == "wandb":
        import wandb

        run = wandb.init(project="inheritune", name=name, id=identity, dir=folder, resume="allow")
        return (lambda step, values: run.log(values, step=step)), run.finish
    import mlflow

    mlflow.set_experiment("inheritune")
    tag = "inheritune.run"
    found = mlflow.search_runs(filter_string=f"tags.`{tag}` = '{identity}'", max_results=1, output_format="list")
    if found:
        mlflow.start_run(run_id=found[0].info.run_id)
    else:
        mlflow.start_run(run_name=name, tags={tag: identity})
    return (lambda step, values: mlflow.log_metrics(values, step=step)), mlflow.end_run


def read_metrics(path: Path) -> list[dict[str, str]]:
    """Rows of a ``metrics.csv``, none where there is no file; a line cut short by a kill is left out.

    A file of something else is a UserError.
    """
    if not os.path.lexists(path):
        return []
    text = read_text(path, "the metrics of a run", _REMEDY, max_bytes=1 << 30)
    try:
        rows = list(csv.DictReader(io.StringIO(text, newline="")))
    except csv.Error as error:
        raise UserError(f"{path} can't be read as the metrics of a run ({error}); {_REMEDY}") from error
    if rows and "step" not in rows[0]:
        raise UserError(f"{path} does not hold the metrics of a run: it has no column step; {_REMEDY}")
    return [row for row in rows if _STEP.fullmatch(row["step"] or "") and None not in row.values()]
