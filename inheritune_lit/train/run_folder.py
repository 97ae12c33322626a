"""The folder of a run: which settings it belongs to, and what it ends with."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inheritune_lit.checkpoint.folder import FINAL
from inheritune_lit.checkpoint.manifest import read_manifest, replace_manifest, write_manifest
from inheritune_lit.checkpoint.output import new_folder
from inheritune_lit.checkpoint.settings_guard import check_folder
from inheritune_lit.train.data_change import DATA_SETTINGS


@dataclass(frozen=True)
class RunResult:
    """Outcome of ``pretrain``.

    Attributes:
        final: the trained checkpoint, or None when the run was stopped before its end.
        steps, tokens: done so far, over all restarts.
        val_loss, val_stderr: of the trained checkpoint, None when the run was stopped.
    """

    final: Path | None
    steps: int
    tokens: int
    val_loss: float | None
    val_stderr: float | None


def find_run(run_dir: Path, settings: dict[str, Any]) -> RunResult | None:
    """Check that a folder is free for a run or holds the same one, data aside; nothing is written.

    Args:
        run_dir: the run folder.
        settings: everything that changes the outcome, JSON types only.

    Returns:
        The result, where the run is finished.

    Raises:
        UserError: the folder holds something else, or a run with other settings.
    """
    if check_folder(run_dir, "run", settings, DATA_SETTINGS) is None:
        return None
    final = read_manifest(run_dir / FINAL) if (run_dir / FINAL).is_dir() else None
    if final is None:
        return None
    return RunResult(run_dir / FINAL, final["steps"], final["tokens"], final["val_loss"], final["val_stderr"])


def begin_run(run_dir: Path, settings: dict[str, Any], changes: list[dict[str, Any]]) -> None:
    """Make the folder of a run, unless ``find_run`` found it there; record a change of its data.

    Args:
        changes: from ``data_changes``.
    """
    manifest = read_manifest(run_dir)
    if manifest is None:
        with new_folder(run_dir) as staging:
            write_manifest(staging, "run", {"settings": settings, "data_changes": changes})
    elif manifest["data_changes"] != changes:
        replace_manifest(run_dir, {**manifest, "settings": settings, "data_changes": changes})
