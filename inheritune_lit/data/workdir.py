"""The folder beside the output that holds what is done of a preparation, for the same command to go on from."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from inheritune_lit.data.args import differing_setting
from inheritune_lit.data.jobs import Job
from inheritune_lit.data.shards import DONE
from inheritune_lit.errors import UserError
from inheritune_lit.io.folders import explain_full_disk


@dataclass(frozen=True)
class WorkFolder:
    """Part folders, the plan they follow, and a lock for each node.

    Attributes:
        path: ``.<name of the output>.prepare``, beside the output, where every node sees it.
        out_dir: the output.
    """

    path: Path
    out_dir: Path

    @property
    def parts(self) -> Path:
        """Folder of part folders."""
        return self.path / "parts"

    @property
    def replaced(self) -> Path:
        """Where the former output is while the new one takes its name."""
        return self.path / "replaced"

    def is_done(self, job: Job) -> bool:
        """Whether the job's part folder is whole."""
        return (self.parts / job.id / DONE).is_file()

    def read_pieces(self, jobs: list[Job]) -> list[dict[str, Any]]:
        """Records of the pieces of finished jobs, each with the ``folder`` of its files, in order."""
        records = []
        for job in jobs:
            done = json.loads((self.parts / job.id / DONE).read_text(encoding="utf-8"))
            records += [{**piece, "folder": self.parts / job.id} for piece in done["pieces"]]
        return records

    def read_plan(self) -> dict[str, Any] | None:
        """The plan an earlier call or another node has fixed, or None."""
        path = self.path / "plan.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def agree(self, plan: dict[str, Any]) -> None:
        """Refuse another plan than the fixed one.

        Raises:
            UserError: the tokenizer or an option differs.
        """
        fixed = self.read_plan()
        if fixed is None:
            return
        difference = differing_setting(fixed["options"], plan["options"])
        if fixed["tokenizer"] != plan["tokenizer"]:
            difference = "the tokenizer was another"
        if difference:
            raise UserError(
                f"{self.path} holds unfinished work of other options: {difference}; "
                "give the former ones, or remove that folder"
            )

    def fix(self, plan: dict[str, Any]) -> dict[str, Any]:
        """Fix a plan, unless another node was faster; return the fixed one."""
        written = self.path / f"plan.tmp-{os.getpid()}"
        written.write_text(json.dumps(plan), encoding="utf-8")
        try:
            os.link(written, self.path / "plan.json")  # unlike a rename, this does not replace a plan
        except FileExistsError:
            pass
        except OSError:  # a file system without hard links
            os.replace(written, self.path / "plan.json")
        finally:
            written.unlink(missing_ok=True)
        fixed = self.read_plan()
        assert fixed is not None
        return fixed

    def restore(self) -> None:
        """Undo or complete the replacement of a former output, where the last call was killed in the middle of it."""
        if self.replaced.is_dir():
            if self.out_dir.exists():
                shutil.rmtree(self.replaced)
            else:
                os.replace(self.replaced, self.out_dir)

    def remove(self) -> None:
        """Remove everything."""
        shutil.rmtree(self.path, ignore_errors=True)


def work_folder(out_dir: Path) -> WorkFolder:
    """The work folder of an output; nothing is made."""
    absolute = Path(os.path.abspath(out_dir))
    return WorkFolder(absolute.parent / f".{absolute.name}.prepare", out_dir)


@contextmanager
def locked(work: WorkFolder, node_rank: int, num_nodes: int) -> Iterator[None]:
    """Make the work folder and keep others out while the block runs: this node's double, or, for one node, all.

    What a killed process has left half-done is removed first; a folder without a finished part is removed afterwards.

    Raises:
        UserError: another process is at work, or the folder cannot be made.
    """
    try:
        work.parts.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write beside {work.out_dir}: {error.strerror}; give another --out_dir") from error
    lock = work.path / f"lock.{node_rank}"
    with explain_full_disk(work.path), lock.open("w") as held:
        _take(held, work)
        if num_nodes == 1:
            for other in work.path.glob("lock.*"):
                if other != lock:
                    with other.open("w") as file:
                        _take(file, work)
            for leftover in (*work.path.glob("*.tmp-*"), *work.parts.glob("*.tmp-*")):
                shutil.rmtree(leftover, ignore_errors=True)
        try:
            yield
        finally:
            if num_nodes == 1 and not any(work.parts.glob(f"*/{DONE}")) and not work.replaced.exists():
                work.remove()


def _take(file: TextIO, work: WorkFolder) -> None:
    """Lock a file until it is closed, also by the death of this process."""
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(
            f"another `inheritune prepare` is at work on {work.out_dir}; wait for it, or give another --out_dir"
        ) from None
    except OSError:
        return  # a file system without locks; parts appear whole all the same
