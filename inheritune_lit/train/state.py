"""The resumable state of a run: one file, or one folder where it is sharded over ranks; replaced whole."""

import os
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as distributed_checkpoint
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from inheritune_lit.errors import UserError

STATE = "state.pth"
SHARDED_STATE = "state"
_COUNTERS = "counters.pth"


def save_state(
    run_dir: Path, model: dict[str, torch.Tensor], optimizer: dict[str, Any], counters: dict[str, Any]
) -> None:
    """Write everything a restart needs beside the old state, then take its place.

    Nothing random happens during training and the data order is a function of the step, so weights, optimizer and
    counters are everything. Tensors are written one by one: no copy of them is made in memory.

    Args:
        model, optimizer: their state dicts.
        counters: numbers, such as the steps done.

    Raises:
        UserError: the disk is full or cannot be written; the old state is untouched.
    """
    path, aside = run_dir / STATE, run_dir / f".{STATE}.partial"
    try:
        with aside.open("wb") as file:
            torch.save({"model": model, "optimizer": optimizer, "counters": counters}, file)
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


def load_state(run_dir: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Put a saved state into model and optimizer.

    Returns:
        The counters; empty where nothing was saved.

    Raises:
        UserError: the file is damaged.
    """
    path = run_dir / STATE
    if not path.is_file():
        return {}
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        model.load_state_dict(content["model"])
        optimizer.load_state_dict(content["optimizer"])
        return dict(content["counters"])
    except Exception as error:  # torch raises many kinds for a damaged file
        raise UserError(f"{path} cannot be read; remove it to start the run again") from error


def saved_step(run_dir: Path) -> int:
    """Optimizer steps done in a saved state, 0 where nothing was saved.

    Raises:
        UserError: the file is damaged.
    """
    folder = _sharded_folder(run_dir)
    path = folder / _COUNTERS if folder else run_dir / STATE
    if not path.is_file():
        return 0
    try:
        content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        return int((content if folder else content["counters"])["step"])
    except Exception as error:
        raise UserError(f"{path} cannot be read; remove it to start the run again") from error


def save_sharded_state(
    run_dir: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, counters: dict[str, Any]
) -> None:
    """As ``save_state``, every rank writing its own shards (torch.distributed.checkpoint)."""
    path, aside = run_dir / SHARDED_STATE, run_dir / f".{SHARDED_STATE}.partial"
    rank = torch.distributed.get_rank()
    if rank == 0:
        shutil.rmtree(aside, ignore_errors=True)
    torch.distributed.barrier()
    model_state, optimizer_state = get_state_dict(model, optimizer)
    distributed_checkpoint.save({"model": model_state, "optimizer": optimizer_state}, checkpoint_id=aside)
    if rank == 0:
        torch.save(counters, aside / _COUNTERS)
        # A folder cannot be replaced in one call: the old one steps aside, and a restart finds one of the two.
        old = run_dir / f".{SHARDED_STATE}.old"
        shutil.rmtree(old, ignore_errors=True)
        if path.is_dir():
            path.rename(old)
        aside.rename(path)
        shutil.rmtree(old, ignore_errors=True)
    torch.distributed.barrier()


def load_sharded_state(run_dir: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """As ``load_state``, for any number of ranks.

    Raises:
        UserError: a file is damaged.
    """
    path = _sharded_folder(run_dir)
    if path is None:
        return {}
    try:
        counters = torch.load(path / _COUNTERS, weights_only=True)
        model_state, optimizer_state = get_state_dict(model, optimizer)
        state: dict[str, Any] = {"model": model_state, "optimizer": optimizer_state}
        distributed_checkpoint.load(state, checkpoint_id=path)
        set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    except Exception as error:  # many kinds, as for one file
        raise UserError(f"{path} cannot be read; remove it to start the run again") from error
    return dict(counters)


def _sharded_folder(run_dir: Path) -> Path | None:
    found = (run_dir / name for name in (SHARDED_STATE, f".{SHARDED_STATE}.old"))
    return next((folder for folder in found if folder.is_dir()), None)


def drop_state(run_dir: Path) -> None:
    """Remove the state of a finished run: it is three times the size of the model."""
    for name in (STATE, f".{STATE}.partial"):
        (run_dir / name).unlink(missing_ok=True)
    for name in (SHARDED_STATE, f".{SHARDED_STATE}.partial", f".{SHARDED_STATE}.old"):
        shutil.rmtree(run_dir / name, ignore_errors=True)
