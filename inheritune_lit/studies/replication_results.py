"""What the models of a replication came to."""

import math
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

from inheritune_lit.checkpoint.config import load_config
from inheritune_lit.checkpoint.tensors import HEAD
from inheritune_lit.io.manifest import read_manifest
from inheritune_lit.model.flops import flops_per_token
from inheritune_lit.model.load import is_tied, load_state
from inheritune_lit.studies.replication_grid import Experiment, folder_of
from inheritune_lit.train.metrics import METRICS, read_metrics, read_validations
from inheritune_lit.train.run_folder import FINAL


@dataclass(frozen=True)
class Trained:
    """One training.

    Attributes:
        val_loss, val_stderr: held-out, nats a token, after the last step.
        tokens: trained on, those of what it began with left out.
        flops: of its training, a teacher's left out.
        curve: tokens and held-out loss of each validation.
    """

    name: str
    title: str
    groups: tuple[str, ...]
    seed: int
    n_layer: int
    n_embd: int
    parameters: int
    steps: int
    tokens: int
    flops: float
    seconds: float
    val_loss: float
    val_stderr: float
    curve: list[tuple[int, float]]


def read_results(out_dir: Path, done: list[tuple[Experiment, int]]) -> list[Trained]:
    """Results of trainings that are finished, from their run folders."""
    return [_read(folder_of(out_dir, one.name, seed), one, seed) for one, seed in done]


def _read(run_dir: Path, one: Experiment, seed: int) -> Trained:
    final = read_manifest(run_dir / FINAL)
    assert final, run_dir
    config = load_config(run_dir / FINAL)
    rows = read_metrics(run_dir / METRICS)
    state = load_state(run_dir / FINAL)
    twice = HEAD if is_tied(state) else None
    return Trained(
        name=one.name,
        title=one.title,
        groups=one.groups,
        seed=seed,
        n_layer=config.n_layer,
        n_embd=config.n_embd,
        parameters=sum(tensor.numel() for name, tensor in state.items() if name != twice),
        steps=final["steps"],
        tokens=final["tokens"],
        flops=final["tokens"] * flops_per_token(config, config.block_size),
        seconds=float(rows[-1]["seconds"]),
        val_loss=final["val_loss"],
        val_stderr=final["val_stderr"],
        curve=[(each.tokens, each.loss) for each in read_validations(run_dir / METRICS)],
    )


@dataclass(frozen=True)
class Summary:
    """A model over its seeds.

    Attributes:
        loss: mean held-out loss.
        std: sample standard deviation over the seeds; NaN for one.
        runs: by seed.
    """

    title: str
    loss: float
    std: float
    runs: list[Trained]


def summarise(results: list[Trained], group: str) -> list[Summary]:
    """The models of a table, each over its seeds, in the order of the grid."""
    by_title: dict[str, list[Trained]] = {}
    for each in results:
        if group in each.groups:
            by_title.setdefault(each.title, []).append(each)
    summaries = []
    for title, runs in by_title.items():
        losses = [run.val_loss for run in runs]
        summaries.append(Summary(title, mean(losses), stdev(losses) if len(losses) > 1 else math.nan, runs))
    return summaries


def paired_difference(one: Summary, other: Summary) -> tuple[float, float, int]:
    """Mean of one model's loss minus another's on equal seeds, its sample standard deviation, and how many seeds."""
    theirs = {run.seed: run.val_loss for run in other.runs}
    differences = [run.val_loss - theirs[run.seed] for run in one.runs if run.seed in theirs]
    spread = stdev(differences) if len(differences) > 1 else math.nan
    return (mean(differences) if differences else math.nan), spread, len(differences)
