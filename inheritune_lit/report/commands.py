"""The commands that make a run again, from what its manifests record."""

import math
import shlex
from dataclasses import fields
from typing import Any

from inheritune_lit import DistillArgs, EvalArgs, OptimizerArgs, RunRecord, TrainArgs

_GROUPS = {"train": TrainArgs, "optimizer": OptimizerArgs}


def commands_of(run: RunRecord) -> list[str]:
    """Returns ``inheritune slice`` and ``pretrain`` as they have to be called, without settings at their defaults."""
    settings = run.settings
    initial = settings["initial_checkpoint_dir"]
    commands = []
    if run.parent is not None and run.parent.get("kind") == "slice":
        commands.append(_slice(run.parent, initial))
    given: list[tuple[str, Any]] = [("initial_checkpoint_dir", initial), ("data", settings["data"])]
    given.append(("out_dir", run.folder))
    for group, kind in _GROUPS.items():
        given += _changed(group, settings.get(group, {}), kind)
    if distill := settings.get("distill"):
        given += _changed("distill", distill, DistillArgs)
        # What the teacher is was recorded, not where it was.
        source = "teacher" if "teacher" in distill else "teacher_logits"
        given = [(name, value) for name, value in given if not name.startswith("distill.teacher")]
        given.append((f"distill.{source}", source.upper()))
    given += _evaluation(settings)
    given += [(name, settings[name]) for name in ("precision", "seed", "documents") if settings.get(name) is not None]
    if settings.get("fp8"):
        given.append(("speed.fp8", True))
    if isinstance(mixture := settings.get("mixture"), dict):
        given.append(("mixture.weights", mixture))
    commands.append(_command("pretrain", given))
    return commands


def _slice(manifest: dict[str, Any], out_dir: str) -> str:
    layers, n = manifest["layers"], manifest["n_layer"]
    given: list[tuple[str, Any]] = [("ref", manifest["reference"]["source"])]
    init = manifest.get("init", "inherit")
    if layers in (None, list(range(n))) or init in ("stack", "hybrid-stack"):
        given.append(("n", n))
    else:
        given.append(("layers", ",".join(map(str, layers))))
    if init != "inherit":
        given.append(("init", init))
    if manifest.get("parts") not in (None, ["attn", "mlp", "norm"]):
        given.append(("parts", ",".join(manifest["parts"])))
    given += [(name, False) for name in ("embeddings", "final_norm", "head") if manifest.get(name) is False]
    given += [("seed", manifest["seed"]), ("out_dir", out_dir)]
    return _command("slice", given)


def _changed(group: str, settings: dict[str, Any], kind: type) -> list[tuple[str, Any]]:
    defaults = {field.name: field.default for field in fields(kind)}
    return [
        (f"{group}.{name}", value) for name, value in settings.items() if name in defaults and value != defaults[name]
    ]


def _evaluation(settings: dict[str, Any]) -> list[tuple[str, Any]]:
    asked, given = settings.get("eval", {}), []
    if (interval := asked.get("interval", EvalArgs.interval)) != EvalArgs.interval:
        given.append(("eval.interval", interval))
    # A run's micro-batch is not recorded: any that divides its batch gives the same.
    size = math.gcd(settings["train"]["global_batch_size"], TrainArgs.micro_batch_size)
    if size != TrainArgs.micro_batch_size:
        given.append(("train.micro_batch_size", size))
    if (samples := asked.get("samples")) is not None:
        given.append(("eval.max_iters", math.ceil(samples / size)))
    return given


def _command(name: str, given: list[tuple[str, Any]]) -> str:
    words = [f"--{flag} {shlex.quote(_format_value(value))}" for flag, value in given]
    return f"inheritune {name} " + " ".join(words)


def _format_value(value: Any) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
