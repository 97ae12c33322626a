"""The folder beside the output that holds the finished shards of a preparation, for the same command to continue."""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from inheritune_lit.data.shards import DONE, Shard, ShardSettings
from inheritune_lit.errors import UserError
from inheritune_lit.io.folders import explain_full_disk
from inheritune_lit.io.records import read_record


class WorkDir:
    """Shards, the settings they follow, and a lock; nothing is made until it is locked.

    Attributes:
        out_dir: the output.
        path: ``.<name of the output>.prepare``, beside the output.
        shards: folder of the shards' folders.
        plan: file of the ``ShardSettings``.
        replaced: where the former output is while the new one takes its name.
    """

    def __init__(self, out_dir: Path) -> None:
        absolute = Path(os.path.abspath(out_dir))
        self.out_dir, self.path = out_dir, absolute.with_name(f".{absolute.name}.prepare")
        self.shards, self.plan, self.replaced = (self.path / name for name in ("shards", "plan.json", "replaced"))

    def finished(self, shards: Sequence[Shard]) -> list[Shard]:
        """Returns the shards whose folders are whole."""
        return [shard for shard in shards if (self.shards / shard.id / DONE).is_file()]

    def read_settings(self) -> ShardSettings | None:
        """Returns what an earlier call was started with, or None."""
        if not self.plan.is_file():
            return None
        return read_record(self.plan, ShardSettings, "the plan of a preparation", f"remove {self.path}")

    def restore_output(self) -> None:
        """Undoes or completes the replacement of a former output, where the last call was killed in the middle."""
        if self.replaced.is_dir():
            if self.out_dir.exists():
                shutil.rmtree(self.replaced)
            else:
                os.replace(self.replaced, self.out_dir)

    def remove(self) -> None:
        """Removes everything."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _remove_leftovers(self) -> None:
        """Removes what killed processes have left half-done."""
        for leftover in (*self.path.glob("*.tmp-*"), *self.shards.glob("*.tmp-*")):
            shutil.rmtree(leftover, ignore_errors=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Makes the folder and keeps other calls out while the block runs; an empty one is removed afterwards.

        Raises:
            UserError: another process is at work, or the folder cannot be made.
        """
        import fcntl

        try:
            self.shards.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write beside {self.out_dir}: {error.strerror}; give another --out_dir") from error
        with explain_full_disk(self.path), (self.path / "lock").open("w") as lock:
            try:
                # Held until the file is closed, also by the death of this process.
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(
                    f"another `inheritune prepare` is at work on {self.out_dir}; wait for it, or give another --out_dir"
                ) from None
            except OSError:
                pass  # a file system without locks; shards appear whole all the same
            self._remove_leftovers()
            try:
                yield
            finally:
                self._remove_leftovers()
                if not any(self.shards.glob(f"*/{DONE}")) and not self.replaced.exists():
                    self.remove()
