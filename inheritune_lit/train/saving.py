"""What a run leaves on disk: the state to continue from, and its weights as litgpt checkpoints."""

import math
import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as distributed_checkpoint
from lightning.fabric import Fabric
from torch.distributed.checkpoint import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)

from inheritune_lit.checkpoint.folder import CONFIG_FILES, FINAL, TOKENIZER_FILES, WEIGHTS, copy_files
from inheritune_lit.checkpoint.formats import write_torch_checkpoint
from inheritune_lit.checkpoint.tensors import CHUNK_BYTES, TensorSpec
from inheritune_lit.errors import UserError
from inheritune_lit.io.folders import FULL_DISK, new_folder, remove, replace_file
from inheritune_lit.io.machine import explain_machine
from inheritune_lit.io.manifest import read_manifest, write_manifest
from inheritune_lit.io.records import to_record
from inheritune_lit.train.args import PretrainArgs
from inheritune_lit.train.setup import TrainState

STATE, SHARDED_STATE = "state.pth", "state"
_COUNTERS = "counters.pth"


@dataclass(frozen=True)
class Counters:
    """What a restart needs besides weights and optimizer.

    Attributes:
        best: lowest held-out loss so far.
        guard: fields of the ``LossGuard``.
        due: metrics of the last step, whose validation was still to come; None where nothing is due.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    best: float = math.inf
    guard: dict[str, Any] = field(default_factory=dict)
    due: dict[str, int | float] | None = None


def save_state(
    run_dir: Path, model: dict[str, torch.Tensor], optimizer: dict[str, Any], counters: dict[str, Any]
) -> None:
    """Write everything a restart needs beside the old state, then take its place.

    Nothing random happens during training and the data order is a function of the step, so the state dicts of model and
    optimizer and some counters are everything. Tensors are written one by one: no copy of them is made in memory.

    Raises:
        UserError: the disk is full or cannot be written; the old state is untouched.
    """
    content = {"model": model, "optimizer": optimizer, "counters": counters}
    with writing("the state", run_dir / STATE):
        replace_file(run_dir / STATE, partial(_write, content))


def _write(content: dict[str, Any], path: Path) -> None:
    with path.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def writing(what: str, path: Path) -> Iterator[None]:
    """Turns a disk that is full or fails while a part of a run is written into one line."""
    try:
        yield
    except (OSError, RuntimeError, CheckpointException) as error:  # torch wraps a failed write
        causes = error.failures.values() if isinstance(error, CheckpointException) else ()
        chain = (error, error.__context__, *(cause[0] for cause in causes))
        reason = next((each for each in chain if isinstance(each, OSError) and each.errno is not None), None)
        if reason is None:
            raise
        remedy = "make room" if reason.errno in FULL_DISK else "check the disk"
        raise UserError(
            f"cannot save {what} to {path}: {reason.strerror}; {remedy}, then the same command continues from the last "
            "save"
        ) from error


def restore_state(
    run_dir: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, sharded: bool = False
) -> dict[str, Any]:
    """Put a saved state into model and optimizer, and return its counters; empty where nothing was saved.

    A sharded state may be of another number of ranks. A damaged file is a UserError.
    """
    path = _state_path(run_dir, sharded)
    if path is None:
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
    folder = (run_dir / SHARDED_STATE).is_dir()
    path = run_dir / SHARDED_STATE / _COUNTERS if folder else run_dir / STATE
    if not os.path.lexists(path):
        return 0
    with _reading(path):
        content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        return int((content if folder else content["counters"])["step"])


def _state_path(run_dir: Path, sharded: bool) -> Path | None:
    """Where the state of a run is, None where nothing was saved.

    Raises:
        UserError: it was saved by a strategy of the other kind.
    """
    path, other = run_dir / STATE, run_dir / SHARDED_STATE
    if sharded:
        path, other = other, path
    if os.path.lexists(path):
        return path
    if os.path.lexists(other):
        used = "auto or ddp" if sharded else "fsdp or hybrid"
        raise UserError(f"{other} was saved with --strategy {used}; continue the run with that")
    return None


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise ValueError("not a regular file")
        yield
    except (Exception, CheckpointException) as error:  # torch raises many kinds for a damaged file
        if explain_machine(error) and not isinstance(error, FileNotFoundError):
            raise  # such as too little memory: the file may be whole
        raise UserError(f"{path} cannot be read; remove it to start the run again") from error


def save_sharded_state(
    run_dir: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, counters: dict[str, Any]
) -> None:
    """As ``save_state``, every rank writing its own shards (torch.distributed.checkpoint)."""
    path = run_dir / SHARDED_STATE
    model_state, optimizer_state = get_state_dict(model, optimizer)
    first = torch.distributed.get_rank() == 0
    with writing("the state", path), new_folder(path, replace=True) if first else nullcontext() as staging:
        shared = [staging]
        torch.distributed.broadcast_object_list(shared)
        distributed_checkpoint.save({"model": model_state, "optimizer": optimizer_state}, checkpoint_id=shared[0])
        if staging is not None:
            torch.save(counters, staging / _COUNTERS)
    torch.distributed.barrier()


def drop_state(run_dir: Path) -> None:
    """Remove the state of a finished run: it is three times the size of the model."""
    for name in (STATE, SHARDED_STATE):
        if os.path.lexists(run_dir / name):
            remove(run_dir / name)


def is_whole(run_dir: Path) -> bool:
    """Whether a folder holds a finished run, and nothing more that a kill left there."""
    names = {path.name for path in run_dir.glob("*")}
    left = names & {STATE, SHARDED_STATE} or any(name.startswith(".") for name in names)
    return FINAL in names and not left


BEST = "best"


def _chunks(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    flat = tensor.detach().contiguous().view(-1)
    return (part.cpu() for part in flat.split(CHUNK_BYTES // flat.element_size()))


def _copied(content: Any) -> Any:
    """A copy in host memory that training does not change."""
    if isinstance(content, torch.Tensor):
        return content.detach().to("cpu", copy=True)
    if isinstance(content, dict):
        return {key: _copied(value) for key, value in content.items()}
    return type(content)(map(_copied, content)) if isinstance(content, list | tuple) else content


class Saver:
    """Saves model and optimizer of a run; only the first rank writes, except where the model is sharded."""

    def __init__(self, fabric: Fabric, state: TrainState, args: PretrainArgs) -> None:
        self.is_first, self.sharded, self._barrier = fabric.global_rank == 0, args.sharded, fabric.barrier
        self.gpt, self.optimizer = state.gpt, state.optimizer
        self.run_dir, self.initial_dir, self.keep_last = args.out_dir, args.initial_checkpoint_dir, args.train.keep_last
        self._pool = ThreadPoolExecutor(1) if args.train.async_save else None
        self._running: Future[None] | None = None

    def load(self) -> Counters | None:
        """Restore the last saved state; its counters, None where there is none."""
        self._prune()  # a kill may have come before
        counters = restore_state(self.run_dir, self.gpt, self.optimizer, self.sharded)
        remedy = "remove it to start the run again"
        return to_record(counters, Counters, self.run_dir, "a run that can be continued", remedy) if counters else None

    def save(self, counters: Counters, keep: bool = True) -> None:
        """Save the weights as a checkpoint where checkpoints are kept and this one is to be, then the state.

        In this order a kill costs no kept checkpoint: a restart begins at the state before it, and writes it again.

        A UserError says that it cannot be written, now or in the background since the last call.
        """
        self.wait()
        if self.keep_last and keep:
            self.save_weights(f"step-{counters.step:08}", {"steps": counters.step})  # as litgpt names them
        if self.sharded:
            save_sharded_state(self.run_dir, self.gpt, self.optimizer, asdict(counters))
        elif self.is_first:
            content = (self.gpt.state_dict(), self.optimizer.state_dict(), asdict(counters))
            if self._pool is None:
                save_state(self.run_dir, *content)
            else:
                self._running = self._pool.submit(save_state, self.run_dir, *_copied(content))
        self._prune()

    def _prune(self) -> None:
        """Remove kept checkpoints that newer ones replace."""
        if self.keep_last and self.is_first:
            for old in sorted(self.run_dir.glob("step-" + "[0-9]" * 8))[: -self.keep_last]:
                remove(old)

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
            folder = self.run_dir / name
            with writing("the checkpoint", folder), new_folder(folder, replace=True) as staging:
                write_torch_checkpoint(staging / WEIGHTS, specs, aliases, lambda key: _chunks(state[key]))
                copy_files(self.initial_dir, staging, (*CONFIG_FILES, *TOKENIZER_FILES))
                write_manifest(staging, "checkpoint", {**record, "parent": read_manifest(self.initial_dir)})
        self._barrier()

    def wait(self) -> None:
        """Wait for what is being written in the background, and raise its error."""
        if self._running is not None:
            running, self._running = self._running, None
            running.result()


def stopped_text(step: int) -> str:
    """What is said of a run that was stopped after so many steps."""
    if step:
        return f"stopped after step {step:,}, saved; the same command continues"
    return "stopped before the first step; the same command starts again"
