"""The folder beside the output that holds the finished shards of a preparation, for the same command to continue."""

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inheritune_lit.data.shards import DONE, Shard
from inheritune_lit.errors import UserError
from inheritune_lit.io.folders import explain_full_disk, replace_text
from inheritune_lit.io.settings_guard import differences


@dataclass(frozen=True)
class WorkDir:
    """Shards, the plan they follow, and a lock.

    Attributes:
        path: ``.<name of the output>.prepare``, beside the output.
        out_dir: the output.
    """

    path: Path
    out_dir: Path

    @classmethod
    def of(cls, out_dir: Path) -> "WorkDir":
        """Returns the workdir of an output; nothing is made."""
        absolute = Path(os.path.abspath(out_dir))
        return cls(absolute.parent / f".{absolute.name}.prepare", out_dir)

    @property
    def shards(self) -> Path:
        """Folder of the shards' folders."""
        return self.path / "shards"

    @property
    def replaced(self) -> Path:
        """Where the former output is while the new one takes its name."""
        return self.path / "replaced"

    def finished(self, shards: Sequence[Shard]) -> list[Shard]:
        """Returns the shards whose folders are whole."""
        return [shard for shard in shards if (self.shards / shard.id / DONE).is_file()]

    def read_plan(self) -> dict[str, Any] | None:
        """Returns the plan that an earlier call has written, or None.

        Returns:
            The manifest's ``tokenizer``, ``dtype`` and ``options``, and the subset's ``thresholds``.
        """
        path = self.path / "plan.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def write_plan(self, plan: dict[str, Any]) -> None:
        """Writes the plan for later calls."""
        replace_text(self.path / "plan.json", json.dumps(plan))

    def check_plan(self, plan: dict[str, Any]) -> None:
        """Refuses another plan than the written one.

        Raises:
            UserError: the tokenizer or a setting differs.
        """
        before = self.read_plan()
        if before is None:
            return
        subject, advice = f"{self.path} holds unfinished work of", "give the former ones, or remove that folder"
        if before["tokenizer"] != plan["tokenizer"]:
            raise UserError(f"{subject} another tokenizer; {advice}")
        for name, old, new in differences(before["options"], plan["options"]):
            raise UserError(f"{subject} other options: --{name} was {old}, now it is {new}; {advice}")

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

    def remove_leftovers(self) -> None:
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
            self.remove_leftovers()
            try:
                yield
            finally:
                self.remove_leftovers()
                if not any(self.shards.glob(f"*/{DONE}")) and not self.replaced.exists():
                    self.remove()
