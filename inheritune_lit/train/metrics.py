"""Metrics of a run: always ``metrics.csv``, TensorBoard events on top when asked for."""

import csv
import os
from pathlib import Path

METRICS = "metrics.csv"
COLUMNS = ("step", "tokens", "loss", "lr", "grad_norm", "tokens_per_s", "seconds", "val_loss", "val_stderr")


class MetricsLog:
    """One row a logged step; on resuming, rows after the resumed step are dropped so that none appears twice.

    Args:
        folder: the run folder.
        resumed_step: steps that are already done.
        tensorboard: write TensorBoard events to ``folder/tensorboard`` too.
    """

    def __init__(self, folder: Path, resumed_step: int, tensorboard: bool) -> None:
        self.path = folder / METRICS
        kept = [row for row in read_metrics(self.path) if int(row["step"]) <= resumed_step and resumed_step > 0]
        # A kill here must not cost the rows that are there.
        aside = folder / f".{METRICS}.partial"
        with aside.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(kept)
        os.replace(aside, self.path)
        self._events = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._events = SummaryWriter(folder / "tensorboard", purge_step=resumed_step + 1)

    def write(self, row: dict[str, float | int]) -> None:
        """Append one row; columns that are not measured at this step are left empty."""
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, COLUMNS).writerow(row)
        if self._events:
            for name, value in row.items():
                if name != "step":
                    self._events.add_scalar(name, value, row["step"])

    def close(self) -> None:
        """Flush the events."""
        if self._events:
            self._events.close()


def read_metrics(path: Path) -> list[dict[str, str]]:
    """Rows of a ``metrics.csv``, none where there is no file; a line cut short by a kill is left out."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if row["step"].isdigit() and None not in row.values()]
