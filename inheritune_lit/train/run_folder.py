"""The folder of a run: what it was started with, what may change when it is continued, and what came out."""

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from inheritune_lit.checkpoint.config import Config, load_lit_config
from inheritune_lit.checkpoint.folder import FINAL, is_litgpt_folder
from inheritune_lit.data.manifest import content_sha256, domain_sha256s
from inheritune_lit.data.mixture import Mixture
from inheritune_lit.data.sampler import CYCLE, MixtureSampler
from inheritune_lit.errors import UserError
from inheritune_lit.evaluation.held_out import DomainLoss
from inheritune_lit.io.folders import new_folder
from inheritune_lit.io.manifest import read_manifest, replace_manifest, write_manifest
from inheritune_lit.io.settings_guard import check_folder, differences
from inheritune_lit.model.flops import flops_per_token
from inheritune_lit.train.args import EvalArgs, OptimizerArgs, SpeedArgs, TrainArgs
from inheritune_lit.train.metrics import METRICS, read_metrics
from inheritune_lit.train.plan import RunPlan
from inheritune_lit.train.saving import saved_step

# These say how often to look, what to keep and how to share the work, not what to compute: they may change when a run
# is continued.
_FREE_SETTINGS = (
    "log_interval",
    "save_interval",
    "max_time",
    "keep_last",
    "keep_best",
    "async_save",
    "bad_step",
    "max_loss_jump",
    "micro_batch_size",
)
DATA_SETTINGS = ("data", "data_sha256", "documents", "mixture", "domains")


def training_settings(train: TrainArgs, eval: EvalArgs, optimizer: OptimizerArgs, speed: SpeedArgs) -> dict[str, Any]:
    """All arguments that change the outcome: a run is continued only where every value is the same."""
    return {
        "train": {name: value for name, value in asdict(train).items() if name not in _FREE_SETTINGS},
        "eval": {"interval": eval.interval, "samples": eval.max_iters and eval.max_iters * train.micro_batch_size},
        "optimizer": asdict(optimizer),
        "fp8": speed.fp8,
    }


def data_settings(folder: Path, documents: str, mixture: Mixture) -> dict[str, Any]:
    """What a run's data is, for its settings."""
    hashes = domain_sha256s(folder)
    shares = {name: float(mixture.share(name)) for name in mixture.draws} if mixture.draws else "proportional"
    return {
        "data": str(folder),
        "data_sha256": content_sha256(folder),
        "documents": documents,
        "mixture": shares,
        "domains": {
            name: {"sha256": hashes[name], "train_blocks": size.samples, "train_tokens": size.tokens}
            for name, size in mixture.domains.items()
        },
    }


def data_changes(
    run_dir: Path, settings: dict[str, Any], total_steps: int, finished: bool, allowed: bool
) -> list[dict[str, Any]]:
    """Changes of a run's data so far, the one that this call brings included; nothing is written.

    A change is recorded with the sample it begins at, how often each domain had been drawn before, what is different,
    and what the data was until then.

    Args:
        run_dir: where ``find_run`` found a run or nothing.
        settings: those of this call.
        total_steps: the steps they make.
        finished: the run is at its end.
        allowed: a change is wanted.

    Raises:
        UserError: a change that is not allowed, or that cannot be made any more.
    """
    manifest = read_manifest(run_dir)
    if manifest is None:
        return []
    started, changes = manifest["settings"], manifest.get("data_changes", [])
    if not started.keys() >= set(DATA_SETTINGS):
        raise UserError(f"{run_dir} was started by an older version of inheritune-lit; give another --out_dir")
    different = _differences(started, settings)
    if different and (finished or not allowed):
        way = "" if finished else ", or continue with the new data by --allow_data_change true"
        raise UserError(
            f"{run_dir} was started with {'; '.join(different)}; use the old data and settings, give another "
            f"--out_dir{way}"
        )
    if finished or not (different or changes):
        return changes
    steps = saved_step(run_dir)
    sample = steps * settings["train"]["global_batch_size"]
    if changes and sample < changes[-1]["sample"]:
        raise UserError(
            f"{run_dir} holds no state from sample {changes[-1]['sample']:,} on, where its data was changed; give "
            "another --out_dir"
        )
    if not different:
        return changes
    if steps >= total_steps:
        raise UserError(
            f"{run_dir} has done {steps:,} steps, the budget makes {total_steps:,} of the new data; give another "
            "--out_dir"
        )
    before = _drawn(started, changes, sample)
    was = {name: started[name] for name in DATA_SETTINGS}
    return [*changes, {"sample": sample, "drawn": before, "different": different, "was": was}]


def run_sampler(settings: dict[str, Any], changes: list[dict[str, Any]]) -> MixtureSampler:
    """The order of a run's samples from its last change on."""
    mixture = settings["mixture"]
    draws = None if mixture == "proportional" else {name: round(share * CYCLE) for name, share in mixture.items()}
    blocks = {name: domain["train_blocks"] for name, domain in settings["domains"].items()}
    first, drawn = (changes[-1]["sample"], changes[-1]["drawn"]) if changes else (0, {})
    return MixtureSampler(blocks, settings["seed"], draws, first, drawn)


def _drawn(settings: dict[str, Any], changes: list[dict[str, Any]], sample: int) -> dict[str, int]:
    """How often each domain was drawn before a sample."""
    sampler = run_sampler(settings, changes)
    drawn = dict(changes[-1]["drawn"]) if changes else {}
    for name, count in sampler.domain_counts(sampler.first_sample, sample).items():
        drawn[name] = drawn.get(name, 0) + count
    return drawn


def _differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What is different about the data, in words that follow "was started with"; the folder's name does not count."""
    different = []
    domains, now = old["domains"], new["domains"]
    different += [f"domain {name!r}, which is gone" for name in domains if name not in now]
    different += [f"no domain {name!r}" for name in now if name not in domains]
    for name in sorted(domains.keys() & now.keys()):
        if domains[name]["sha256"] != now[name]["sha256"]:
            different.append(
                f"other text in domain {name!r} ({_tokens_text(domains[name])}, now {_tokens_text(now[name])})"
            )
    mixtures = [each["mixture"] for each in (old, new)]
    if all(isinstance(mixture, dict) for mixture in mixtures):
        names = sorted(mixtures[0].keys() | mixtures[1].keys())
        mixtures = [{name: mixture.get(name, 0) for name in names} for mixture in mixtures]
    was, asked = ({"documents": each["documents"], "mixture": m} for each, m in zip((old, new), mixtures, strict=True))
    different += [f"{name} {value!r}, not {other!r}" for name, value, other in differences(was, asked)]
    if old["data_sha256"] != new["data_sha256"] and not different:
        different.append(f"data_sha256 {old['data_sha256']!r}, not {new['data_sha256']!r}")
    return different


def _tokens_text(domain: dict[str, Any]) -> str:
    return f"{domain['train_tokens']:,} training tokens"


@dataclass(frozen=True)
class RunResult:
    """Outcome of ``pretrain``; its text is what the command prints.

    Attributes:
        plan: what the run does in all; None where it was finished before.
        final: the trained checkpoint; None after a dry run, and when the run was stopped before its end.
        steps, tokens: done so far, over all restarts.
        val_loss, val_stderr: of the trained checkpoint; None without one.
        domains: held-out loss by domain, where this call finished the run.
        stopped: a signal or ``train.max_time`` ended the call before the run's end.
    """

    plan: RunPlan | None = field(compare=False, repr=False)
    final: Path | None = None
    steps: int = 0
    tokens: int = 0
    val_loss: float | None = None
    val_stderr: float | None = None
    domains: dict[str, DomainLoss] = field(default_factory=dict, compare=False)
    stopped: bool = False

    def __str__(self) -> str:
        if self.stopped:
            return f"stopped after step {self.steps:,}, saved; the same command continues"
        if self.final is None:
            return ""
        if self.plan is None:
            return f"{self.final.parent} is finished: {self.steps} steps, held-out loss {self.val_loss:.4f}"
        lines = [f"held-out loss {self.val_loss:.4f} ± {self.val_stderr:.4f}; wrote {self.final}"]
        if len(self.domains) > 1:
            for name, held_out in self.domains.items():
                noise = "(one sample)" if math.isnan(held_out.stderr) else f"± {held_out.stderr:.4f}"
                lines.append(f"  {name}: {held_out.loss:.4f} {noise} over {held_out.tokens:,} tokens")
        return "\n".join(lines)


def find_run(run_dir: Path, settings: dict[str, Any]) -> RunResult | None:
    """Check that a folder is free for a run or holds the same one, data aside; nothing is written.

    Args:
        run_dir: the run folder.
        settings: everything that changes the outcome, JSON types only.

    Returns:
        The result, where the run is finished.

    Raises:
        UserError: the folder holds something else, or a run with other settings.
    """
    if check_folder(run_dir, "run", settings, DATA_SETTINGS) is None:
        return None
    final = read_manifest(run_dir / FINAL) if (run_dir / FINAL).is_dir() else None
    if final is None:
        return None
    return RunResult(None, run_dir / FINAL, final["steps"], final["tokens"], final["val_loss"], final["val_stderr"])


def begin_run(run_dir: Path, settings: dict[str, Any], changes: list[dict[str, Any]]) -> None:
    """Make the folder of a run, unless ``find_run`` found it there; record a change of its data.

    Args:
        changes: from ``data_changes``.
    """
    manifest = read_manifest(run_dir)
    if manifest is None:
        with new_folder(run_dir) as staging:
            write_manifest(staging, "run", {"settings": settings, "data_changes": changes})
    elif manifest["data_changes"] != changes:
        replace_manifest(run_dir, {**manifest, "settings": settings, "data_changes": changes})


@dataclass(frozen=True)
class RunRecord:
    """A run of ``inheritune pretrain``.

    Attributes:
        folder: the run folder.
        manifest: of the run folder.
        rows: of ``metrics.csv``; columns that were not measured at a step are left out.
        final: manifest of the trained checkpoint, None while there is none.
        parent: manifest of the checkpoint that the run started from, None where that is gone.
        config: shape of the model, None where no checkpoint tells it.
    """

    folder: Path
    manifest: dict[str, Any]
    rows: list[dict[str, float]]
    final: dict[str, Any] | None
    parent: dict[str, Any] | None
    config: Config | None

    @property
    def name(self) -> str:
        """Name of the run folder."""
        return self.folder.resolve().name

    @property
    def settings(self) -> dict[str, Any]:
        """What the run was started with."""
        return self.manifest["settings"]

    @property
    def validations(self) -> list[dict[str, float]]:
        """Rows with a held-out loss."""
        return [row for row in self.rows if "val_loss" in row]

    @property
    def curve(self) -> list[tuple[int, float]]:
        """Tokens and held-out loss of each validation."""
        return [(int(row["tokens"]), row["val_loss"]) for row in self.validations]

    @property
    def slice(self) -> dict[str, Any] | None:
        """Manifest of the slice that the run goes back to, over any number of runs."""
        manifest = self.parent
        while manifest is not None and manifest.get("kind") != "slice":
            manifest = manifest.get("parent")
        return manifest

    @property
    def flops_per_token(self) -> float | None:
        """FLOPs per token of training, a teacher's left out; None where the shape is not known."""
        if self.config is None:
            return None
        return flops_per_token(self.config, self.settings["train"].get("max_seq_length") or self.config.block_size)

    def typical(self, column: str) -> float | None:
        """Median of a column, None where it was never measured."""
        values = [row[column] for row in self.rows if column in row]
        return median(values) if values else None

    def largest(self, column: str) -> float | None:
        """Largest value of a column, None where it was never measured."""
        return max((row[column] for row in self.rows if column in row), default=None)


def read_run(folder: Path) -> RunRecord | None:
    """Reads the folder of a run; None where the folder holds something else.

    Raises:
        UserError: the manifest or the metrics are damaged.
    """
    manifest = read_manifest(folder)
    if manifest is None or manifest.get("kind") != "run":
        return None
    try:
        rows = [
            {column: float(value) for column, value in row.items() if value} for row in read_metrics(folder / METRICS)
        ]
    except ValueError as error:
        raise UserError(f"{folder / METRICS} is damaged ({error}); restore it, or leave the folder out") from error
    final = read_manifest(folder / FINAL)
    initial = Path(manifest["settings"]["initial_checkpoint_dir"])
    parent = final.get("parent") if final else read_manifest(initial)
    shape = next((path for path in (folder / FINAL, initial) if is_litgpt_folder(path)), None)
    return RunRecord(folder, manifest, rows, final, parent, load_lit_config(shape) if shape is not None else None)
