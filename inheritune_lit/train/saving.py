"""What a run leaves on disk: the state to continue from, and its weights as litgpt checkpoints."""

import os
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
from torch.utils._pytree import tree_map_only

from inheritune_lit.checkpoint.folder import CONFIG_FILES, TOKENIZER_FILES, WEIGHTS, copy_files
from inheritune_lit.checkpoint.formats import write_torch_checkpoint
from inheritune_lit.checkpoint.tensors import CHUNK_BYTES, TensorSpec
from inheritune_lit.errors import UserError
from inheritune_lit.io.folders import new_folder
from inheritune_lit.io.manifest import read_manifest, write_manifest
from inheritune_lit.train.args import PretrainArgs
from inheritune_lit.train.setup import TrainState

STATE, SHARDED_STATE = "state.pth", "state"
_PARTIAL, _SHARDED_PARTIAL, _SHARDED_OLD = ".state.pth.partial", ".state.partial", ".state.old"
_COUNTERS = "counters.pth"


def save_state(
    run_dir: Path, model: dict[str, torch.Tensor], optimizer: dict[str, Any], counters: dict[str, Any]
) -> None:
    """Write everything a restart needs beside the old state, then take its place.

    Nothing random happens during training and the data order is a function of the step, so the state dicts of model and
    optimizer and some counters are everything. Tensors are written one by one: no copy of them is made in memory.

    Raises:
        UserError: the disk is full or cannot be written; the old state is untouched.
    """
    path, aside = run_dir / STATE, run_dir / _PARTIAL
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


def restore_state(
    run_dir: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, sharded: bool = False
) -> dict[str, Any]:
    """Put a saved state into model and optimizer, and return its counters; empty where nothing was saved.

    A sharded state may be of another number of ranks. A damaged file is a UserError.
    """
    path = _sharded_folder(run_dir) if sharded else run_dir / STATE
    if path is None or not path.exists():
        return {}
    with _reading(path):
        if not sharded:
            content: dict[str, Any] = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
            model.load_state_dict(content["model"])
            optimizer.load_state_dict(content["optimizer"])
            return dict(content["counters"])
        model_state, optimizer_state = get_state_dict(model, optimizer)
        state: dict[str, Any] = {"model": model_state, "optimizer": optimizer_state}
        distributed_checkpoint.load(state, checkpoint_id=path)
        set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
        return dict(torch.load(path / _COUNTERS, weights_only=True))


def saved_step(run_dir: Path) -> int:
    """Optimizer steps done in a saved state, 0 where nothing was saved; a UserError where it is damaged."""
    folder = _sharded_folder(run_dir)
    path = folder / _COUNTERS if folder else run_dir / STATE
    if not path.is_file():
        return 0
    with _reading(path):
        content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        return int((content if folder else content["counters"])["step"])


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
    path, aside, old = (run_dir / name for name in (SHARDED_STATE, _SHARDED_PARTIAL, _SHARDED_OLD))
    rank = torch.distributed.get_rank()
    if rank == 0:
        shutil.rmtree(aside, ignore_errors=True)
    torch.distributed.barrier()
    model_state, optimizer_state = get_state_dict(model, optimizer)
    distributed_checkpoint.save({"model": model_state, "optimizer": optimizer_state}, checkpoint_id=aside)
    if rank == 0:
        torch.save(counters, aside / _COUNTERS)
        # A folder cannot be replaced in one call: the old one steps aside, and a restart finds one of the two.
        shutil.rmtree(old, ignore_errors=True)
        if path.is_dir():
            path.rename(old)
        aside.rename(path)
        shutil.rmtree(old, ignore_errors=True)
    torch.distributed.barrier()


def _sharded_folder(run_dir: Path) -> Path | None:
    return next((run_dir / name for name in (SHARDED_STATE, _SHARDED_OLD) if (run_dir / name).is_dir()), None)


def drop_state(run_dir: Path) -> None:
    """Remove the state of a finished run: it is three times the size of the model."""
    for name in (STATE, _PARTIAL):
        (run_dir / name).unlink(missing_ok=True)
    for name in (SHARDED_STATE, _SHARDED_PARTIAL, _SHARDED_OLD):
        shutil.rmtree(run_dir / name, ignore_errors=True)


BEST = "best"


def _chunks(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    flat = tensor.detach().contiguous().view(-1)
    return (part.cpu() for part in flat.split(CHUNK_BYTES // flat.element_size()))


class Saver:
    """Saves model and optimizer of a run; only the first rank writes, except where the model is sharded."""

    def __init__(self, fabric: Fabric, state: TrainState, args: PretrainArgs) -> None:
        self.is_first, self.sharded, self._barrier = fabric.global_rank == 0, args.sharded, fabric.barrier
        self.gpt, self.optimizer = state.gpt, state.optimizer
        self.run_dir, self.initial_dir, self.keep_last = args.out_dir, args.initial_checkpoint_dir, args.train.keep_last
        self._pool = ThreadPoolExecutor(1) if args.train.async_save else None
        self._running: Future[None] | None = None

    def load(self) -> dict[str, Any]:
        """Restore the last saved state; its counters, empty where there is none."""
        return restore_state(self.run_dir, self.gpt, self.optimizer, self.sharded)

    def save(self, counters: dict[str, Any]) -> None:
        """Save the state, and the weights as a checkpoint where checkpoints are kept.

        A UserError says that it cannot be written, now or in the background since the last call.
        """
        self.wait()
        if self.sharded:
            save_sharded_state(self.run_dir, self.gpt, self.optimizer, counters)
        elif self.is_first:
            content = (self.gpt.state_dict(), self.optimizer.state_dict(), counters)
            if self._pool is None:
                save_state(self.run_dir, *content)
            else:
                # A copy in host memory that training does not change.
                content = tree_map_only(torch.Tensor, lambda tensor: tensor.detach().to("cpu", copy=True), content)
                self._running = self._pool.submit(save_state, self.run_dir, *content)
        if self.keep_last:
            self.save_weights(f"step-{counters['step']:08}", {"steps": counters["step"]})  # as litgpt names them
            if self.is_first:
                for old in sorted(self.run_dir.glob("step-" + "[0-9]" * 8))[: -self.keep_last]:
                    shutil.rmtree(old)

    def save_weights(self, name: str, record: dict[str, Any]) -> None:
        """Write the weights as a litgpt checkpoint in the run folder, tensor by tensor from wherever they are.

        Tensors that share their storage do so in the file. The initial checkpoint's configuration and tokenizer are
        copied; its manifest is kept as ``parent`` beside the ``record``. An older checkpoint of this name stays until
        the new one is whole.
        """
        whole = StateDictOptions(full_state_dict=True, cpu_offload=True)  # on the first rank
        state: dict[str, Any] = get_model_state_dict(self.gpt, options=whole) if self.sharded else self.gpt.state_dict()
        if self.is_first:
            first: dict[int, str] = {}
            originals = {key: first.setdefault(tensor.data_ptr(), key) for key, tensor in state.items()}
            aliases = {key: original for key, original in originals.items() if key != original}
            specs = {key: TensorSpec(tuple(state[key].shape), state[key].dtype) for key in first.values()}
            folder, new = self.run_dir / name, self.run_dir / f"{name}.new"
            shutil.rmtree(new, ignore_errors=True)
            with new_folder(new) as staging:
                write_torch_checkpoint(staging / WEIGHTS, specs, aliases, lambda key: _chunks(state[key]))
                copy_files(self.initial_dir, staging, (*CONFIG_FILES, *TOKENIZER_FILES))
                write_manifest(staging, "checkpoint", {**record, "parent": read_manifest(self.initial_dir)})
            shutil.rmtree(folder, ignore_errors=True)
            new.rename(folder)
        self._barrier()

    def wait(self) -> None:
        """Wait for what is being written in the background, and raise its error."""
        if self._running is not None:
            running, self._running = self._running, None
            running.result()
