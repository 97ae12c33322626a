"""A growing that dies at a chosen moment, in a process of its own."""

import multiprocessing
import os
import signal
from pathlib import Path

import torch

_context = multiprocessing.get_context("forkserver")
# Imported once: every process forks from there instead of importing torch again.
_context.set_forkserver_preload(["inheritune_lit.studies.grow", "inheritune_lit.cli"])


def run_or_die(args: list[str], before_replace: int) -> int:
    """Run a command line that gets SIGKILL just before it puts the given file or folder, from 1, into its place.

    Everything that lasts is put into place by ``os.replace``: checkpoints, states, losses, history.

    Returns:
        The exit code: 0, or minus the signal.
    """
    process = _context.Process(target=_run, args=(args, before_replace))
    process.start()
    process.join(120)
    assert process.exitcode is not None
    return process.exitcode


def _run(args: list[str], before_replace: int) -> None:
    torch.set_num_threads(1)
    replace, seen = os.replace, 0

    def replace_or_die(source: Path, target: Path) -> None:
        nonlocal seen
        seen += 1
        if seen == before_replace:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    os.replace = replace_or_die
    from inheritune_lit.cli import main

    raise SystemExit(main(args))
