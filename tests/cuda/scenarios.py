"""Commands of the package on a simulated GPU, each from its arguments to its last file.

    python tests/cuda/scenarios.py FOLDER [NAME ...]

The folder has a checkpoint, packed data and rows of tasks. What was seen goes to stdout as JSON, by scenario, all of
them by default: the host's waits by function of the package, attention kernels, operations on the GPU and on the host,
and what the scenario returns.
Training is eager here; simulate.py compiles.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from fake_cuda import fake_cuda
from gpu_watch import Watch, by_function

from inheritune_lit.train.args import DistillArgs, EvalArgs, PretrainArgs, SpeedArgs, TeachArgs, TrainArgs
from inheritune_lit.train.run_folder import RunResult

Found = dict[str, Any]
EAGER = SpeedArgs(compile=False)
VALIDATION = EvalArgs(interval=2, max_iters=4)
TRAIN = TrainArgs(
    global_batch_size=4,
    micro_batch_size=2,
    max_seq_length=16,
    max_steps=3,
    lr_warmup_steps=0,
    save_interval=None,
)


def _pretrain(folder: Path, out_dir: str, **changes: Any) -> RunResult:
    from inheritune_lit.train.pretrain import pretrain

    given = {"train": TRAIN, "eval": VALIDATION, "speed": EAGER, **changes}
    return pretrain(PretrainArgs(folder / "checkpoint", folder / "packed", folder / out_dir, **given))


def train(folder: Path, seen: Watch) -> Found:
    """Training stopped after a step and continued, with validation and saving."""
    stopped = _pretrain(folder, "run", train=replace(TRAIN, max_time=1e-9))
    seen.clear()
    run = _pretrain(folder, "run")
    return {"stopped_after": stopped.steps, "steps": run.steps}


def distil(folder: Path, seen: Watch) -> Found:
    """A teacher's predictions of both kinds, then training on them, then training with the teacher itself."""
    from inheritune_lit.train.teach import teach

    logits, teacher = folder / "logits", str(folder / "checkpoint")
    teach(TeachArgs(teacher, folder / "packed", folder / "draws", max_seq_length=16, batch_size=64))
    teaching = by_function(seen.waits)
    teach(TeachArgs(teacher, folder / "packed", logits, max_seq_length=16, top_k=8, batch_size=64))
    _pretrain(folder, "likeliest", distill=DistillArgs(teacher_logits=logits))
    seen.clear()
    _pretrain(folder, "stored", distill=DistillArgs(teacher_logits=folder / "draws"))
    stored = by_function(seen.waits)
    seen.clear()
    _pretrain(folder, "taught", distill=DistillArgs(teacher=teacher, align="last"))
    return {"teaching": teaching, "stored": stored}


def grow(folder: Path, seen: Watch) -> Found:
    """Growing from one layer to two, all of them."""
    from inheritune_lit.studies.args import GrowArgs
    from inheritune_lit.studies.grow import grow

    settings = {"train": TRAIN, "eval": VALIDATION, "speed": EAGER}
    grown = grow(GrowArgs(str(folder / "checkpoint"), folder / "packed", folder / "grown", n=1, grow_by=1, **settings))
    assert grown.record
    return {"depths": [each.n_layer for each in grown.record.rounds]}


def evaluate(folder: Path, seen: Watch) -> Found:
    """Held-out loss, and choices scored through the prefix tree."""
    from inheritune_lit.evaluation.args import EvaluateArgs
    from inheritune_lit.evaluation.harness import evaluate

    given = {"val_data": folder / "packed", "max_seq_length": 16, "limit": 4, "data_dir": folder / "tasks"}
    result = evaluate(EvaluateArgs([folder / "checkpoint"], tasks="piqa", out_dir=folder / "scores", **given))
    return {"tasks": sorted(result.checkpoints[0].tasks)}


def generate(folder: Path, seen: Watch) -> Found:
    """Text made with a cache of keys and values."""
    from inheritune_lit.evaluation.generation import GenerationSettings, generate
    from inheritune_lit.model.attention import install_plans
    from inheritune_lit.model.load import load_model

    model = load_model(folder / "checkpoint", device=torch.device("cuda"))
    install_plans(model)
    settings = GenerationSettings.of({"max_gen_toks": 5, "until": []})
    seen.clear()
    made = generate(model, [[1, 2, 3], [4, 5]], settings, eos_id=2, decode=str)
    return {"made": made}


def analyze(folder: Path, seen: Watch) -> Found:
    """Every measure of layers and heads, gradients and dropped layers as well."""
    from inheritune_lit.analysis.analyze import analyze_model
    from inheritune_lit.analysis.args import AnalyzeArgs

    given = {"num_sequences": 4, "seq_length": 16, "drop_sequences": 2}
    analyze_model(AnalyzeArgs(str(folder / "checkpoint"), folder / "packed", folder / "analysis", **given))
    return {"written": sorted(path.name for path in (folder / "analysis").iterdir())}


SCENARIOS: dict[str, Callable[[Path, Watch], Found]] = {
    each.__name__: each for each in (train, distil, grow, evaluate, generate, analyze)
}


def main() -> None:
    """Run scenarios one after the other."""
    folder, names = Path(sys.argv[1]), sys.argv[2:] or list(SCENARIOS)
    torch.set_num_threads(1)
    found: dict[str, Found] = {}
    with fake_cuda() as seen:
        for name in names:
            seen.clear()
            returned = SCENARIOS[name](folder, seen)
            counts = {kind: dict(getattr(seen, kind)) for kind in ("attention", "operations", "on_host")}
            found[name] = {"waits": by_function(seen.waits), **counts, **returned}
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
