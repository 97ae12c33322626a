"""The folder of a run: what it was started with, what may change when it is continued, and what came out."""

import math
import secrets
from collections import Counter
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from statistics import median
from typing import Any

from inheritune_lit.checkpoint.config import Config, load_lit_config
from inheritune_lit.checkpoint.folder import FINAL, is_litgpt_folder
from inheritune_lit.data.manifest import content_sha256, domain_sha256s
from inheritune_lit.data.sampler import CYCLE, Mixture, MixtureSampler
from inheritune_lit.errors import UserError
from inheritune_lit.evaluation.held_out import DomainLoss
from inheritune_lit.io.manifest import (
    MANIFEST,
    check_folder,
    differences,
    read_manifest,
    replace_manifest,
    write_manifest,
)
from inheritune_lit.io.records import to_record
from inheritune_lit.model.flops import flops_per_token
from inheritune_lit.train.args import EvalArgs, OptimizerArgs, SpeedArgs, TrainArgs
from inheritune_lit.train.metrics import METRICS, read_metrics
from inheritune_lit.train.plan import RunPlan
from inheritune_lit.train.saving import saved_step

_REMEDY = "restore it, or give another folder"


@dataclass(frozen=True)
class _Domain:
    sha256: str
    train_blocks: int
    train_tokens: int


@dataclass(frozen=True)
class DataSettings:
    """What a run's data is."""

    data: str
    data_sha256: str
    documents: str
    mixture: dict[str, float] | str
    domains: dict[str, _Domain]


@dataclass(frozen=True)
class _Change:
    sample: int
    drawn: dict[str, int]
    different: list[str]
    was: DataSettings


@dataclass(frozen=True)
class _Train:
    global_batch_size: int
    max_seq_length: int | None = None


@dataclass(frozen=True, kw_only=True)
class RunSettings(DataSettings):
    """What a run was started with, as far as it is read again."""

    initial_checkpoint_dir: str
    initial_weights_sha256: str
    train: dict[str, Any]
    eval: dict[str, int | None]
    optimizer: dict[str, Any]
    precision: str
    seed: int
    fp8: bool = False
    distill: dict[str, Any] | None = None
    total_steps: int = 0
    device: str = ""


@dataclass(frozen=True)
class RunManifest:
    """What is read of a run's ``inheritune.json``."""

    settings: RunSettings
    data_changes: list[_Change]
    flops_per_token: float | None = None  # of training, a teacher's forward included; None in runs of earlier versions
    created: str = "unknown"
    versions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Final:
    """What is read of the manifest of its trained checkpoint."""

    steps: int
    tokens: int
    val_loss: float
    val_stderr: float
    parent: dict[str, Any] | None = None


def read_run_manifest(folder: Path) -> tuple[dict[str, Any], RunManifest] | None:
    """The manifest of a run as it is, and checked; None where the folder holds none, or something else's."""
    if (manifest := read_manifest(folder, "run")) is None:
        return None
    about = (folder / MANIFEST, "the manifest of a run", _REMEDY, True)
    checked = to_record(manifest, RunManifest, *about)
    to_record(manifest["settings"]["train"], _Train, *about)
    return manifest, checked


def read_final(folder: Path) -> dict[str, Any] | None:
    """The manifest of a run's trained checkpoint, checked; None where there is none."""
    path, what = folder / FINAL, "the manifest of a trained checkpoint"
    if (final := read_manifest(path)) is not None:
        to_record(final, _Final, path / MANIFEST, what, _REMEDY, others=True)
    return final


# These say how often to look, what to keep and how to share the work, not what to compute: they may change when a run
# is continued.
_FREE_SETTINGS = {"log_interval", "save_interval", "max_time", "keep_last", "average_last", "keep_best", "async_save"}
_FREE_SETTINGS |= {"bad_step", "max_loss_jump", "micro_batch_size"}
_DATA_SETTINGS = [each.name for each in fields(DataSettings)]


def training_settings(train: TrainArgs, eval: EvalArgs, optimizer: OptimizerArgs, speed: SpeedArgs) -> dict[str, Any]:
    """All arguments that change the outcome: a run is continued only where every value is the same."""
    samples = eval.count(train.micro_batch_size)
    return {
        "train": {name: value for name, value in asdict(train).items() if name not in _FREE_SETTINGS},
        "eval": {"interval": eval.interval, "samples": samples, "max_iters": eval.max_iters},
        "optimizer": asdict(optimizer),
        "fp8": speed.fp8,
    }


def data_settings(folder: Path, documents: str, mixture: Mixture) -> dict[str, Any]:
    """What a run's data is, for its settings."""
    hashes = domain_sha256s(folder)
    return {
        "data": str(folder),
        "data_sha256": content_sha256(folder),
        "documents": documents,
        "mixture": {name: float(mixture.share(name)) for name in mixture.draws} if mixture.draws else "proportional",
        "domains": {
            name: {"sha256": hashes[name], "train_blocks": size.samples, "train_tokens": size.tokens}
            for name, size in mixture.domains.items()
        },
    }


def run_sampler(settings: dict[str, Any], changes: list[dict[str, Any]]) -> MixtureSampler:
    """The order of a run's samples from its last change on, which depends on what was drawn before."""
    stages = [*(change["was"] for change in changes), settings]
    sampler = None
    for first, stage in zip([0, *(change["sample"] for change in changes)], stages, strict=True):
        mixture = stage["mixture"]
        draws = None if mixture == "proportional" else {name: round(share * CYCLE) for name, share in mixture.items()}
        blocks = {name: domain["train_blocks"] for name, domain in stage["domains"].items()}
        sampler = MixtureSampler(blocks, settings["seed"], draws, first, sampler)
    assert sampler
    return sampler


@dataclass(frozen=True)
class RunResult:
    """Outcome of ``pretrain``; its text is what the command prints."""

    plan: RunPlan | None = field(compare=False, repr=False)  # of the run in all; None where it was finished before
    final: Path | None = None  # the trained checkpoint; None after a dry run, and when stopped before the run's end
    steps: int = 0  # done so far, over all restarts, as are the tokens
    tokens: int = 0
    val_loss: float | None = None
    val_stderr: float | None = None
    domains: dict[str, DomainLoss] = field(default_factory=dict, compare=False)  # where this call finished the run
    stopped: bool = False  # by a signal or ``train.max_time`` before the run's end
    skipped: int = field(default=0, compare=False)  # bad steps that were left out

    def __str__(self) -> str:
        if self.stopped:
            saved = f"stopped after step {self.steps:,}, saved; the same command continues"
            return saved if self.steps else "stopped before the first step; the same command starts again"
        if self.final is None:
            return ""
        if self.plan is None:
            return f"{self.final.parent} is finished: {self.steps} steps, held-out loss {self.val_loss:.4f}"
        lines = [f"held-out loss {self.val_loss:.4f} ± {self.val_stderr:.4f}; wrote {self.final}"]
        if self.skipped:
            lines.append(f"{self.skipped:,} bad steps were left out, which {self.plan.total_steps:,} include")
        if len(self.domains) > 1:
            for name, held_out in self.domains.items():
                noise = "(one sample)" if math.isnan(held_out.stderr) else f"± {held_out.stderr:.4f}"
                lines.append(f"  {name}: {held_out.loss:.4f} {noise} over {held_out.tokens:,} tokens")
        return "\n".join(lines)


def check_run_folder(run_dir: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The manifest of the run with these settings, its data aside; None where a folder is free for one.

    A folder that holds something else, or a run with other settings, is a ``UserError``.
    """
    free = [*_DATA_SETTINGS, "device", "total_steps", "eval.interval", "eval.max_iters"]
    if found := read_run_manifest(run_dir):
        started = found[1].settings
        if started.initial_weights_sha256 == settings["initial_weights_sha256"]:
            free.append("initial_checkpoint_dir")  # it may lie elsewhere now
        if started.total_steps == settings["total_steps"]:
            free += ["train.max_tokens", "train.max_steps", "train.epochs"]
    final = run_dir / FINAL
    more = f", or train {final} further as the --initial_checkpoint_dir of a new run" if final.is_dir() else ""
    return check_folder(run_dir, "run", settings, tuple(free), f"use the old value or give another --out_dir{more}")


def find_run(
    run_dir: Path, settings: dict[str, Any], allow_data_change: bool
) -> tuple[RunResult | None, list[dict[str, Any]]]:
    """The result of the run in a folder, where it is finished, and the changes of its data, that of this call included.

    A ``UserError`` as of ``check_run_folder``, or where the data changed and that is not allowed or cannot be any more.
    """
    manifest = check_run_folder(run_dir, settings)
    if manifest is None:
        return None, []
    final, started, changes = read_final(run_dir), manifest["settings"], manifest["data_changes"]
    different = _differences(started, settings)
    if different and (final or not allow_data_change):
        remedy = "use the old data and settings, give another --out_dir"
        remedy += "" if final else ", or continue with the new data by --allow_data_change true"
        raise UserError(f"{run_dir} was started with {'; '.join(different)}; {remedy}")
    if final:
        numbers = (final["steps"], final["tokens"], final["val_loss"], final["val_stderr"])
        return RunResult(None, run_dir / FINAL, *numbers), changes
    steps = saved_step(run_dir) if different or changes else 0
    sample = steps * started["train"]["global_batch_size"]
    if changes and sample < (changed := changes[-1]["sample"]):
        lacking = f"no state from sample {changed:,} on, where its data was changed"
        raise UserError(f"{run_dir} holds {lacking}; give another --out_dir")
    if not different:
        return None, changes
    if steps >= (total_steps := settings["total_steps"]):
        budget = f"the budget makes {total_steps:,} of the new data"
        raise UserError(f"{run_dir} has done {steps:,} steps, {budget}; give another --out_dir")
    sampler = run_sampler(started, changes)
    drawn = Counter(changes[-1]["drawn"] if changes else {})
    drawn.update(sampler.domain_counts(sampler.first_sample, sample))
    was = {name: started[name] for name in _DATA_SETTINGS}
    # The sample that the new data begins at, and how often each domain had been drawn before.
    return None, [*changes, {"sample": sample, "drawn": dict(drawn), "different": different, "was": was}]


def _differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What is different about the data, in words that follow "was started with"; the folder's name does not count."""
    domains, now = old["domains"], new["domains"]
    different = [f"domain {name!r}, which is gone" for name in domains if name not in now]
    different += [f"no domain {name!r}" for name in now if name not in domains]
    different += [
        f"other text in domain {name!r} ({domains[name]['train_tokens']:,} training tokens, now "
        f"{now[name]['train_tokens']:,} training tokens)"
        for name in sorted(domains.keys() & now.keys())
        if domains[name]["sha256"] != now[name]["sha256"]
    ]
    was, asked = ({name: each[name] for name in ("documents", "mixture")} for each in (old, new))
    # A domain that is not in a mixture has 0 of it.
    different += [f"{name} {value or 0!r}, not {other or 0!r}" for name, value, other in differences(was, asked)]
    if old["data_sha256"] != new["data_sha256"] and not different:
        different.append(f"data_sha256 {old['data_sha256']!r}, not {new['data_sha256']!r}")
    return different


def begin_run(run_dir: Path, settings: dict[str, Any], changes: list[dict[str, Any]], flops_per_token: float) -> None:
    """Begin a run in its folder, unless ``find_run`` found it there; record what has changed since."""
    record = {"settings": settings, "data_changes": changes, "flops_per_token": flops_per_token}
    manifest = read_manifest(run_dir)
    if manifest is None:
        write_manifest(run_dir, "run", {"id": secrets.token_hex(8), **record})
    elif manifest != manifest | record:
        replace_manifest(run_dir, manifest | record)


@dataclass(frozen=True)
class RunRecord:
    """A run of ``inheritune pretrain``, as its folder tells it."""

    folder: Path
    recorded: RunManifest  # what it was started with, when, and by which versions
    rows: list[dict[str, float]]  # of ``metrics.csv``; columns that were not measured at a step are left out
    final: dict[str, Any] | None  # manifest of the trained checkpoint, None while there is none
    parent: dict[str, Any] | None  # manifest of the checkpoint that the run started from, None where that is gone
    config: Config | None  # shape of the model, None where no checkpoint tells it

    @property
    def validations(self) -> list[dict[str, float]]:
        """Rows with a held-out loss."""
        return [row for row in self.rows if "val_loss" in row]

    @property
    def curve(self) -> list[tuple[int, float]]:
        """Tokens and held-out loss of each validation."""
        return [(int(row["tokens"]), row["val_loss"]) for row in self.validations]

    @property
    def slice(self) -> Any:
        """Manifest of the slice that the run goes back to, over any number of runs, as it was recorded."""
        manifest: Any = self.parent
        while isinstance(manifest, dict) and manifest.get("kind") != "slice":
            manifest = manifest.get("parent")
        return manifest

    @property
    def flops_per_token(self) -> float | None:
        """FLOPs per token of training, a teacher's forward included; None where they are not known."""
        if self.recorded.flops_per_token is not None:
            return self.recorded.flops_per_token
        given = self.recorded.settings.train.get("max_seq_length")
        return flops_per_token(self.config, given or self.config.block_size) if self.config else None

    def typical(self, column: str) -> float | None:
        """Median of a column, None where it was never measured."""
        values = [row[column] for row in self.rows if column in row]
        return median(values) if values else None

    def largest(self, column: str) -> float | None:
        """Largest value of a column, None where it was never measured."""
        return max((row[column] for row in self.rows if column in row), default=None)


def read_run(folder: Path) -> RunRecord | None:
    """Reads the folder of a run; None where it holds something else, a UserError where it is damaged."""
    if (found := read_run_manifest(folder)) is None:
        return None
    rows = read_metrics(folder / METRICS)
    try:
        numbers = [{column: float(value) for column, value in row.items() if value} for row in rows]
        if any(not math.isfinite(row.get("tokens", math.nan)) for row in numbers):
            raise ValueError("a row has no number of tokens")
    except (ValueError, TypeError) as error:
        raise UserError(f"{folder / METRICS} is damaged ({error}); restore it, or leave the folder out") from error
    final, initial = read_final(folder), Path(found[1].settings.initial_checkpoint_dir)
    parent = final.get("parent") if final else read_manifest(initial)
    config = next((load_lit_config(path) for path in (folder / FINAL, initial) if is_litgpt_folder(path)), None)
    return RunRecord(folder, found[1], numbers, final, parent, config)
