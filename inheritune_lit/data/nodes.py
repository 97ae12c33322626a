"""Which share of the work is this process's, among machines."""

import os
from collections.abc import Mapping

from inheritune_lit.errors import UserError

# srun sets the first pair for every process of a step, and only there: in a batch script that does not use srun,
# SLURM_NTASKS is set too, but only one process runs. The second pair is torchrun's and most other launchers'.
_LAUNCHERS = (("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"), ("RANK", "WORLD_SIZE"))


def share(node_rank: int | None, num_nodes: int | None, environment: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """Rank and number of the processes that share the job: as given, else as a launcher says, else (0, 1).

    Raises:
        UserError: one is given without the other, or the rank is out of range.
    """
    if num_nodes is None and node_rank is None:
        for rank_name, count_name in _LAUNCHERS:
            rank, count = _number(environment, rank_name), _number(environment, count_name)
            if rank is not None and count is not None and rank < count:
                return rank, count
        return 0, 1
    if num_nodes == 1 and node_rank is None:
        return 0, 1
    if num_nodes is None or node_rank is None:
        raise UserError("--node_rank and --num_nodes belong together; give both")
    if not 0 <= node_rank < num_nodes:
        raise UserError(f"--node_rank is {node_rank} with --num_nodes {num_nodes}; ranks count from 0")
    return node_rank, num_nodes


def default_workers(environment: Mapping[str, str] = os.environ) -> int:
    """Cores this process may use, shared out among a launcher's processes on this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // max(1, _number(environment, "LOCAL_WORLD_SIZE") or 1))


def _number(environment: Mapping[str, str], name: str) -> int | None:
    value = environment.get(name, "")
    return int(value) if value.isdecimal() else None
