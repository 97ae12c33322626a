"""What a run folder holds, read from disk; a run that is still going on is read as far as it is."""

from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from inheritune_lit.checkpoint.config import Config, load_lit_config
from inheritune_lit.checkpoint.folder import FINAL, is_litgpt_folder
from inheritune_lit.errors import UserError
from inheritune_lit.io.manifest import read_manifest
from inheritune_lit.model.flops import flops_per_token
from inheritune_lit.train.metrics import METRICS, read_metrics


@dataclass(frozen=True)
class RunRecord:
    """A run of ``inheritune pretrain``.

    Attributes:
        folder: the run folder.
        manifest: of the run folder.
        rows: of ``metrics.csv``; columns that were not measured at a step are left out.
        final: manifest of the trained checkpoint, None while there is none.
        parent: manifest of the checkpoint that the run started from, None where that is gone.
        config: shape of the model, None where no checkpoint tells it.
    """

    folder: Path
    manifest: dict[str, Any]
    rows: list[dict[str, float]]
    final: dict[str, Any] | None
    parent: dict[str, Any] | None
    config: Config | None

    @property
    def name(self) -> str:
        """Name of the run folder."""
        return self.folder.resolve().name

    @property
    def settings(self) -> dict[str, Any]:
        """What the run was started with."""
        return self.manifest["settings"]

    @property
    def validations(self) -> list[dict[str, float]]:
        """Rows with a held-out loss."""
        return [row for row in self.rows if "val_loss" in row]

    @property
    def curve(self) -> list[tuple[int, float]]:
        """Tokens and held-out loss of each validation."""
        return [(int(row["tokens"]), row["val_loss"]) for row in self.validations]

    @property
    def slice(self) -> dict[str, Any] | None:
        """Manifest of the slice that the run goes back to, over any number of runs."""
        manifest = self.parent
        while manifest is not None and manifest.get("kind") != "slice":
            manifest = manifest.get("parent")
        return manifest

    @property
    def flops_per_token(self) -> float | None:
        """FLOPs per token of training, a teacher's left out; None where the shape is not known."""
        if self.config is None:
            return None
        return flops_per_token(self.config, self.settings["train"].get("max_seq_length") or self.config.block_size)

    def typical(self, column: str) -> float | None:
        """Median of a column, None where it was never measured."""
        values = [row[column] for row in self.rows if column in row]
        return median(values) if values else None

    def largest(self, column: str) -> float | None:
        """Largest value of a column, None where it was never measured."""
        return max((row[column] for row in self.rows if column in row), default=None)


def read_run(folder: Path) -> RunRecord | None:
    """Reads the folder of a run; None where the folder holds something else.

    Raises:
        UserError: the manifest or the metrics are damaged.
    """
    manifest = read_manifest(folder)
    if manifest is None or manifest.get("kind") != "run":
        return None
    try:
        rows = [
            {column: float(value) for column, value in row.items() if value} for row in read_metrics(folder / METRICS)
        ]
    except ValueError as error:
        raise UserError(f"{folder / METRICS} is damaged ({error}); restore it, or leave the folder out") from error
    final = read_manifest(folder / FINAL)
    initial = Path(manifest["settings"]["initial_checkpoint_dir"])
    parent = final.get("parent") if final else read_manifest(initial)
    shape = next((path for path in (folder / FINAL, initial) if is_litgpt_folder(path)), None)
    return RunRecord(folder, manifest, rows, final, parent, load_lit_config(shape) if shape is not None else None)
