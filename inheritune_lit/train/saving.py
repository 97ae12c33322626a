"""What a run leaves on disk: the state to continue from, and its weights as litgpt checkpoints."""

import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
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
from torch.utils._pytree import tree_map_only

from inheritune_lit.checkpoint.folder import CONFIG_FILES, FINAL, TOKENIZER_FILES, WEIGHTS, copy_files
from inheritune_lit.checkpoint.formats import write_torch_checkpoint
from inheritune_lit.checkpoint.tensors import CHUNK_BYTES, TensorSpec
from inheritune_lit.errors import UserError
from inheritune_lit.io.folders import FULL_DISK, new_folder, remove, replace_file
from inheritune_lit.io.machine import explain_machine
from inheritune_lit.io.manifest import read_manifest, write_manifest
from inheritune_lit.io.records import to_record
from inheritune_lit.model.load import load_state
from inheritune_lit.train.args import PretrainArgs
from inheritune_lit.train.setup import TrainState

STATE, SHARDED_STATE, BEST, AVERAGED = "state.pth", "state", "best", "averaged"
_COUNTERS = "counters.pth"


@dataclass(frozen=True)
class Counters:
    """What a restart needs besides weights and optimizer."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    best: float = math.inf  # lowest held-out loss so far
    guard: dict[str, Any] = field(default_factory=dict)  # fields of the ``LossGuard``
    due: dict[str, int | float] | None = None  # metrics of the last step, whose validation was still to come


def save_state(
    run_dir: Path, model: dict[str, torch.Tensor], optimizer: dict[str, Any], counters: dict[str, Any]
) -> None:
    """Write everything a restart needs beside the old state, then take its place.

    Nothing random happens during training and the data order is a function of the step, so the state dicts of model and
    optimizer and some counters are everything. Tensors are written one by one: no copy of them is made in memory. A
    disk that is full or cannot be written is a ``UserError``; the old state is untouched.
    """

    def write(path: Path) -> None:
        with path.open("wb") as file:
            torch.save({"model": model, "optimizer": optimizer, "counters": counters}, file)
            file.flush()
            os.fsync(file.fileno())

    with writing("the state", run_dir / STATE):
        replace_file(run_dir / STATE, write)


@contextmanager
def writing(what: str, path: Path) -> Iterator[None]:
    """Turns a disk that is full or fails while a part of a run is written into one line."""
    try:
        yield
    except (OSError, RuntimeError, CheckpointException) as error:  # torch wraps a failed write
        failures = error.failures.values() if isinstance(error, CheckpointException) else ()
        chain = (error, error.__context__, *(failure[0] for failure in failures))
        reason = next((each for each in chain if isinstance(each, OSError) and each.errno is not None), None)
        if reason is None:
            raise
        remedy = "make room" if reason.errno in FULL_DISK else "check the disk"
        remedy += ", then the same command continues from the last save"
        raise UserError(f"cannot save {what} to {path}: {reason.strerror}; {remedy}") from error


def restore_state(run_dir: Path, model: Any, optimizer: Any, sharded: bool = False) -> dict[str, Any]:
    """Put a saved state into model and optimizer, and return its counters; empty where nothing was saved.

    A sharded state may be of another number of ranks. A damaged file, or a state that was saved by a strategy of the
    other kind, is a UserError.
    """
    path, other = (run_dir / name for name in ((SHARDED_STATE, STATE) if sharded else (STATE, SHARDED_STATE)))
    if not os.path.lexists(path):
        if os.path.lexists(other):
            used = "auto or ddp" if sharded else "fsdp or hybrid"
            raise UserError(f"{other} was saved with --strategy {used}; continue the run with that")
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
    for path in (run_dir / SHARDED_STATE / _COUNTERS, run_dir / STATE):
        if os.path.lexists(path):
            with _reading(path):
                content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
                return int(content.get("counters", content)["step"])
    return 0


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


def drop_state(run_dir: Path) -> None:
    """Remove the state of a finished run: it is three times the size of the model."""
    for name in (STATE, SHARDED_STATE):
        remove(run_dir / name)


def is_whole(run_dir: Path) -> bool:
    """Whether a folder holds a finished run, and nothing more that a kill left there."""
    names = {path.name for path in run_dir.glob("*")}
    left = names & {STATE, SHARDED_STATE} or any(name.startswith(".") for name in names)
    return FINAL in names and not left


class Saver:
    """Saves model and optimizer of a run; only the first rank writes, except where the model is sharded."""

    def __init__(self, fabric: Fabric, state: TrainState, args: PretrainArgs) -> None:
        self.is_first, self.sharded, self._barrier = fabric.global_rank == 0, args.sharded, fabric.barrier
        self.state, self.gpt = state, state.gpt
        self.optimizer: Any = state.optimizer  # a plain one where the model is sharded
        self.run_dir, self.initial_dir, self.keep_last = args.out_dir, args.initial_checkpoint_dir, args.train.keep_last
        self._pool = ThreadPoolExecutor(1) if args.train.async_save else None
        self._running: Future[None] | None = None

    def load(self) -> Counters | None:
        """Restore the last saved state; its counters, None where there is none."""
        self._prune()  # a kill may have come before
        model = self.gpt if self.sharded else self.state
        counters = restore_state(self.run_dir, model, self.optimizer, self.sharded)
        remedy = "remove it to start the run again"
        return to_record(counters, Counters, self.run_dir, "a run that can be continued", remedy) if counters else None

    def save(self, counters: Counters, keep: bool = True) -> None:
        """Save the weights as a checkpoint where checkpoints are kept and this one is to be, then the state.

        In this order a kill costs no kept checkpoint: a restart begins at the state before it, and writes it again. A
        UserError says that it cannot be written, now or in the background since the last call.
        """
        self.wait()
        if self.keep_last and keep:
            self.save_weights(f"step-{counters.step:08}", {"steps": counters.step})  # as litgpt names them
        if self.sharded:
            self._save_shards(counters)
        elif self.is_first:
            content = (self.state.weights(), self.optimizer.state_dict(), asdict(counters))
            if self._pool is None:
                save_state(self.run_dir, *content)
            else:
                copied = tree_map_only(torch.Tensor, lambda tensor: tensor.detach().to("cpu", copy=True), content)
                self._running = self._pool.submit(save_state, self.run_dir, *copied)
        self._prune()

    def _save_shards(self, counters: Counters) -> None:
        """As ``save_state``, every rank writing its own shards (torch.distributed.checkpoint)."""
        path = self.run_dir / SHARDED_STATE
        model, optimizer = get_state_dict(self.gpt, self.optimizer)
        with writing("the state", path), new_folder(path, replace=True) if self.is_first else nullcontext() as staging:
            shared = [staging]
            torch.distributed.broadcast_object_list(shared)
            distributed_checkpoint.save({"model": model, "optimizer": optimizer}, checkpoint_id=shared[0])
            if staging is not None:
                torch.save(asdict(counters), staging / _COUNTERS)
        self._barrier()

    def _prune(self) -> None:
        """Remove kept checkpoints that newer ones replace."""
        if self.keep_last and self.is_first:
            for old in self.kept()[: -self.keep_last]:
                remove(old)

    def kept(self, before: int = 10**8) -> list[Path]:
        """Kept checkpoints of steps before one, the newest last."""
        found = sorted(self.run_dir.glob("step-" + "[0-9]" * 8))
        return [path for path in found if path.name < f"step-{before:08}"]

    def save_weights(self, name: str, record: dict[str, Any], earlier: Sequence[Path] = ()) -> None:
        """Write the weights as a litgpt checkpoint in the run folder, tensor by tensor from wherever they are.

        With ``earlier`` checkpoints of the run it is the mean of theirs and these, taken in fp32. What is frozen is the
        initial checkpoint's: the model may hold it rounded. Tensors that share their storage do so in the file. The
        initial checkpoint's configuration and tokenizer are copied, its manifest is the ``parent`` in the ``record``.
        """
        whole = StateDictOptions(full_state_dict=True, cpu_offload=True)  # on the first rank
        state: dict[str, Any] = get_model_state_dict(self.gpt, options=whole) if self.sharded else self.state.weights()
        if self.is_first:
            dtype = next(iter(state.values())).dtype
            if len(state) < len(self.gpt.state_dict()):
                state = {**load_state(self.initial_dir), **state}
            first: dict[int, str] = {}
            originals = {key: first.setdefault(tensor.data_ptr(), key) for key, tensor in state.items()}
            aliases = {key: original for key, original in originals.items() if key != original}
            specs = {key: TensorSpec(tuple(state[key].shape), dtype) for key in first.values()}
            folder = self.run_dir / name
            states = [state, *map(load_state, earlier)]

            def chunks(key: str) -> Iterator[torch.Tensor]:
                flat = (each[key].detach().contiguous().view(-1) for each in states)
                for same in zip(*(each.split(CHUNK_BYTES // dtype.itemsize) for each in flat), strict=True):
                    parts = [part.to("cpu") for part in same]
                    yield (torch.stack(parts).float().mean(dim=0) if earlier else parts[0]).to(dtype)

            with writing("the checkpoint", folder), new_folder(folder, replace=True) as staging:
                write_torch_checkpoint(staging / WEIGHTS, specs, aliases, chunks)
                copy_files(self.initial_dir, staging, (*CONFIG_FILES, *TOKENIZER_FILES))
                write_manifest(staging, "checkpoint", {**record, "parent": read_manifest(self.initial_dir)})
        self._barrier()

    def wait(self) -> None:
        """Wait for what is being written in the background, and raise its error."""
        running, self._running = self._running, None
        if running:
            running.result()
