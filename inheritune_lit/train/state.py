"""The resumable state of a run: one file, replaced whole."""

import os
from pathlib import Path
from typing import Any

import torch

from inheritune_lit.errors import UserError

STATE = "state.pth"


def save_state(
    run_dir: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, step: int, tokens: int, seconds: float
) -> None:
    """Write everything a restart needs beside the old state, then take its place.

    Nothing random happens during training and the data order is a function of the step, so model, optimizer and step
    are everything; tokens and seconds are for the record.

    Args:
        step: optimizer steps done.
        tokens: tokens trained on so far.
        seconds: training time so far.

    Raises:
        UserError: the disk is full or cannot be written; the old state is untouched.
    """
    path, aside = run_dir / STATE, run_dir / f".{STATE}.partial"
    content = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    content |= {"step": step, "tokens": tokens, "seconds": seconds}
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


def load_state(run_dir: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, int, float]:
    """Put a saved state into model and optimizer.

    Returns:
        Optimizer steps done, tokens and training time so far; zeros where nothing was saved.

    Raises:
        UserError: the file is damaged.
    """
    content = _read_state(run_dir)
    if content is None:
        return 0, 0, 0.0
    try:
        model.load_state_dict(content["model"])
        optimizer.load_state_dict(content["optimizer"])
        return content["step"], content["tokens"], content["seconds"]
    except Exception as error:  # torch raises many kinds for a damaged file
        raise _unreadable(run_dir) from error


def saved_step(run_dir: Path) -> int:
    """Optimizer steps done in a saved state, 0 where nothing was saved.

    Raises:
        UserError: the file is damaged.
    """
    content = _read_state(run_dir)
    return content["step"] if content else 0


def _read_state(run_dir: Path) -> dict[str, Any] | None:
    if not (run_dir / STATE).is_file():
        return None
    try:
        return torch.load(run_dir / STATE, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged file
        raise _unreadable(run_dir) from error


def _unreadable(run_dir: Path) -> UserError:
    return UserError(f"{run_dir / STATE} cannot be read; remove it to start the run again")


def drop_state(run_dir: Path) -> None:
    """Remove the state of a finished run: it is three times the size of the model."""
    for name in (STATE, f".{STATE}.partial"):
        (run_dir / name).unlink(missing_ok=True)
