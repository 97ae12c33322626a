"""The resumable state of a run: one file, replaced whole."""

import os
from pathlib import Path
from typing import Any

import torch

from inheritune_lit.errors import UserError

STATE = "state.pth"


def save_state(
    run_dir: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, step: int, seconds: float
) -> None:
    """Write everything a restart needs beside the old state, then take its place.

    Nothing random happens during training and the data order is a function of the step, so model, optimizer and step
    are everything.

    Args:
        step: optimizer steps done.
        seconds: training time so far.

    Raises:
        UserError: the disk is full or cannot be written; the old state is untouched.
    """
    path, aside = run_dir / STATE, run_dir / f".{STATE}.partial"
    content = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step, "seconds": seconds}
    try:
        with aside.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except (OSError, RuntimeError) as error:  # torch wraps a failed write into a RuntimeError
        aside.unlink(missing_ok=True)
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        raise UserError(
            f"cannot save the state to {path}: {cause.strerror}; make room, then the same command continues from the "
            "last save"
        ) from error


def load_state(run_dir: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, float]:
    """Put a saved state into model and optimizer.

    Returns:
        Optimizer steps done and training time so far; zeros where nothing was saved.

    Raises:
        UserError: the file is damaged.
    """
    path = run_dir / STATE
    if not path.is_file():
        return 0, 0.0
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        model.load_state_dict(content["model"])
        optimizer.load_state_dict(content["optimizer"])
    except Exception as error:  # torch raises many kinds for a damaged file
        raise UserError(f"{path} cannot be read; remove it to start the run again") from error
    return content["step"], content["seconds"]


def drop_state(run_dir: Path) -> None:
    """Remove the state of a finished run: it is three times the size of the model."""
    for name in (STATE, f".{STATE}.partial"):
        (run_dir / name).unlink(missing_ok=True)
