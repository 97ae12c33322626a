"""What a run leaves on disk: the state to continue from, and its weights as litgpt checkpoints."""

import os
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as distributed_checkpoint
from lightning.fabric import Fabric
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)

from inheritune_lit.checkpoint.folder import CONFIG_FILES, TOKENIZER_FILES, WEIGHTS, copy_files
from inheritune_lit.checkpoint.tensors import CHUNK_BYTES, TensorSpec
from inheritune_lit.checkpoint.write import write_torch_checkpoint
from inheritune_lit.errors import UserError
from inheritune_lit.io.folders import new_folder
from inheritune_lit.io.manifest import read_manifest, write_manifest
from inheritune_lit.train.args import TrainArgs
from inheritune_lit.train.setup import TrainState

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


def restore_state(run_dir: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Put a saved state into model and optimizer.

    Returns:
        The counters; empty where nothing was saved.

    Raises:
        UserError: the file is damaged.
    """
    path = run_dir / STATE
    if not path.is_file():
        return {}
    with _reading(path):
        content: dict[str, Any] = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        model.load_state_dict(content["model"])
        optimizer.load_state_dict(content["optimizer"])
    return dict(content["counters"])


def saved_step(run_dir: Path) -> int:
    """Optimizer steps done in a saved state, 0 where nothing was saved.

    Raises:
        UserError: the file is damaged.
    """
    folder = _sharded_folder(run_dir)
    path = folder / _COUNTERS if folder else run_dir / STATE
    if not path.is_file():
        return 0
    with _reading(path):
        content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        step = (content if folder else content["counters"])["step"]
    return int(step)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # torch raises many kinds for a damaged file
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


def restore_sharded_state(run_dir: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """As ``restore_state``, for any number of ranks.

    Raises:
        UserError: a file is damaged.
    """
    path = _sharded_folder(run_dir)
    if path is None:
        return {}
    with _reading(path):
        counters = torch.load(path / _COUNTERS, weights_only=True)
        model_state, optimizer_state = get_state_dict(model, optimizer)
        state: dict[str, Any] = {"model": model_state, "optimizer": optimizer_state}
        distributed_checkpoint.load(state, checkpoint_id=path)
        set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
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


BEST = "best"
_STEP = re.compile(r"^step-(\d{8})$")


def write_checkpoint(folder: Path, initial_dir: Path, state: dict[str, torch.Tensor], record: dict[str, Any]) -> None:
    """Write a litgpt checkpoint, tensor by tensor from whatever device they are on.

    The initial checkpoint's configuration and tokenizer are copied; its manifest is kept as ``parent``. An older
    checkpoint in its place stays until the new one is whole.

    Args:
        folder: the new folder.
        initial_dir: the checkpoint that the run started from.
        state: the model's state dict; tensors that share their storage do so in the file.
        record: what the manifest says.
    """
    first: dict[int, str] = {}
    aliases = {
        name: first[tensor.data_ptr()]
        for name, tensor in state.items()
        if first.setdefault(tensor.data_ptr(), name) != name
    }
    specs = {
        name: TensorSpec(tuple(tensor.shape), tensor.dtype) for name, tensor in state.items() if name not in aliases
    }
    new = folder.with_name(f"{folder.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    with new_folder(new) as staging:
        write_torch_checkpoint(staging / WEIGHTS, specs, aliases, lambda name: _chunks(state[name]))
        copy_files(initial_dir, staging, (*CONFIG_FILES, *TOKENIZER_FILES))
        write_manifest(staging, "checkpoint", {**record, "parent": read_manifest(initial_dir)})
    shutil.rmtree(folder, ignore_errors=True)
    new.rename(folder)


def _chunks(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    flat = tensor.detach().contiguous().view(-1)
    for part in flat.split(CHUNK_BYTES // flat.element_size()):
        yield part.cpu()


class Saver:
    """Saves model and optimizer of a run.

    Args:
        fabric: only the first rank writes, except where the model is sharded.
        state: model and optimizer.
        sharded: parameters are spread over ranks.
        run_dir: the run folder.
        initial_dir: the checkpoint that the run started from.
    """

    def __init__(
        self,
        fabric: Fabric,
        state: TrainState,
        sharded: bool,
        run_dir: Path,
        initial_dir: Path,
        train: TrainArgs,
    ) -> None:
        self.fabric, self.gpt, self.optimizer, self.sharded = fabric, state.gpt, state.optimizer, sharded
        self.run_dir, self.initial_dir, self.train = run_dir, initial_dir, train
        self._pool = ThreadPoolExecutor(1) if train.async_save else None
        self._running: Future[None] | None = None

    def load(self) -> dict[str, Any]:
        """Restore the last saved state; its counters, empty where there is none."""
        restore = restore_sharded_state if self.sharded else restore_state
        return restore(self.run_dir, self.gpt, self.optimizer)

    def save(self, counters: dict[str, Any]) -> None:
        """Save the state, and the weights as a checkpoint where checkpoints are kept.

        Raises:
            UserError: it cannot be written, now or in the background since the last call.
        """
        self.wait()
        step = counters["step"]
        if self.sharded:
            save_sharded_state(self.run_dir, self.gpt, self.optimizer, counters)
        elif self.fabric.global_rank == 0:
            content = (self.gpt.state_dict(), self.optimizer.state_dict(), counters)
            if self._pool is None:
                save_state(self.run_dir, *content)
            else:
                self._running = self._pool.submit(save_state, self.run_dir, *map(_on_host, content))
        if self.train.keep_last:
            self.save_weights(f"step-{step:08}", {"steps": step})  # as litgpt names them
            if self.fabric.global_rank == 0:
                kept = sorted(folder for folder in self.run_dir.iterdir() if _STEP.match(folder.name))
                for folder in kept[: -self.train.keep_last]:
                    shutil.rmtree(folder)

    def save_weights(self, name: str, record: dict[str, Any]) -> None:
        """Write the weights as a checkpoint in the run folder, in place of an older one of this name."""
        state = self._weights()
        if self.fabric.global_rank == 0:
            write_checkpoint(self.run_dir / name, self.initial_dir, state, record)
        self.fabric.barrier()

    def wait(self) -> None:
        """Wait for what is being written in the background.

        Raises:
            UserError: it failed.
        """
        if self._running is not None:
            running, self._running = self._running, None
            running.result()

    def _weights(self) -> dict[str, Any]:
        """The model's state dict, whole on the first rank."""
        if not self.sharded:
            return self.gpt.state_dict()
        return get_model_state_dict(self.gpt, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


def _on_host(content: Any) -> Any:
    """A copy in host memory that training does not change."""
    if isinstance(content, torch.Tensor):
        return content.detach().to("cpu", copy=True)
    if isinstance(content, dict):
        return {name: _on_host(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return type(content)(_on_host(value) for value in content)
    return content
