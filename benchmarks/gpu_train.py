"""A real training of some minutes on a GPU, with evaluation before and after, by the commands that users type.

    python benchmarks/gpu_train.py --weights smollm2-135m --data packed --out trained [--wheels wheels] [--minutes 5]

``--weights`` is a folder that ``inheritune slice`` takes, or a slice; ``--data`` is packed with its tokenizer
(``inheritune prepare``), 100M tokens or more for five minutes on a large GPU; ``--task_rows`` is a folder of local
rows for ``inheritune eval``. A short run measures the speed, and from it follows the number of steps of the real one.
``--out`` gets gpu-train.json, .txt, and -logs.tar.gz with all that the commands printed and both metrics.csv.
"""

import argparse
import csv
import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bare import restart
from record import Record, Row

LARGE = {"global_batch_size": 64, "micro_batch_size": 16, "max_seq_length": 1024}
SMALL = {"global_batch_size": 4, "micro_batch_size": 2, "max_seq_length": 32}
SCORE = ("model", "column", "unit", "score", "stderr")  # of a row of results.csv
SHORT, LEAST = 20, 10  # steps of the run that measures, and of the real one


def steps_for(minutes: float, tokens_per_s: float, tokens_per_step: int) -> int:
    """Optimizer steps that a number of minutes has room for at a speed."""
    return max(LEAST, int(minutes * 60 * tokens_per_s / tokens_per_step))


def summary(rows: list[dict[str, str]]) -> Row:
    """Speed, memory and losses from the rows of a metrics.csv."""
    speeds = [float(row["tokens_per_s"]) for row in rows if row.get("tokens_per_s")]
    shares = [float(row["mfu"]) for row in rows if row.get("mfu")]
    held_out = [(int(row["step"]), float(row["val_loss"]), float(row["val_stderr"])) for row in rows if row["val_loss"]]
    later = speeds[len(speeds) // 2 :]  # without the compiler's time
    return {
        "steps": int(rows[-1]["step"]),
        "tokens": int(rows[-1]["tokens"]),
        "tokens_per_s": round(statistics.median(later), 1) if later else None,
        "share_of_peak": round(statistics.median(shares), 4) if shares else None,
        "memory_gb": max(float(row["memory_gb"]) for row in rows if row.get("memory_gb")),
        "held_out": [{"step": step, "loss": loss, "stderr": stderr} for step, loss, stderr in held_out],
    }


def text(found: Row) -> str:
    """The record for reading."""
    machine = found.get("machine", {})
    lines = [found.get("command", ""), f"{machine.get('card') or 'no GPU'}, " + json.dumps(machine)]
    lines += [f"{name}: {json.dumps(found[name])}" for name in ("short", "run", "failed") if name in found]
    for score in found.get("evaluation", []):
        lines.append(f"{score['dtype']:10}{score['model']:8}{score['column']:20}{score['score']} ± {score['stderr']}")
    state = "finished" if found["finished"] else "not finished"
    return "\n".join([*found.get("plan", []), *lines, f"{state} after {found.get('seconds', 0):.0f} s", ""])


class Commands:
    """Calls of ``inheritune``, each with a log of its own."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        logs.mkdir(parents=True, exist_ok=True)

    def call(self, name: str, *arguments: Any) -> str:
        """What the command printed; a ``SystemExit`` with its end when it failed."""
        print(f"{name} ...", flush=True)
        command = [sys.executable, "-m", "inheritune_lit", *map(str, arguments)]
        log, began = self._logs / f"{name}.txt", time.monotonic()
        with log.open("w") as stream:
            code = subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT).returncode
        printed = log.read_text(errors="replace")
        if code:
            raise SystemExit(f"{name} ended with {code}: " + "\n".join(printed.splitlines()[-15:]))
        print(f"  {time.monotonic() - began:.0f} s", flush=True)
        return printed


def pretrain_flags(start: Path, data: Path, out_dir: Path, size: dict[str, int], steps: int, log: int) -> list[Any]:
    """Arguments of a run of a number of steps that validates five times and logs every ``log`` steps."""
    flags: dict[str, Any] = {"initial_checkpoint_dir": start, "data": data, "out_dir": out_dir}
    flags |= {f"train.{name}": value for name, value in size.items()}
    flags |= {"train.max_steps": steps, "train.lr_warmup_steps": max(1, steps // 20), "train.min_lr": 6e-5}
    flags |= {"train.log_interval": log, "train.save_interval": max(1, steps // 2), "optimizer.lr": 6e-4}
    flags |= {"eval.interval": max(1, steps // 4), "eval.samples": 4 * size["global_batch_size"]}
    return ["pretrain", *(part for name, value in flags.items() for part in (f"--{name}", value))]


def run(arguments: argparse.Namespace, folder: Path) -> Record:
    """The whole of it, with ``folder`` for what need not be kept."""
    from training import machine

    from inheritune_lit.checkpoint.folder import is_litgpt_folder
    from inheritune_lit.train.metrics import read_metrics

    logs = folder / "train" / "logs"
    commands, record = Commands(logs), Record(arguments.out, "gpu-train", text, [logs])
    record.write(command=shlex.join(["python", *sys.argv]), machine=machine())
    size, start = SMALL if arguments.small else LARGE, arguments.weights
    if not is_litgpt_folder(start):
        start = folder / "start"
        commands.call("slice", "slice", arguments.weights, "--n", arguments.n, "--out_dir", start)

    def train(name: str, steps: int, log: int, *more: Any) -> Row:
        printed = commands.call(name, *pretrain_flags(start, arguments.data, folder / name, size, steps, log), *more)
        shutil.copyfile(folder / name / "metrics.csv", logs / f"{name}-metrics.txt")
        plan = [line for line in printed.splitlines() if line.startswith(("train ", "      "))]
        record.write(plan=plan, **{name: summary(read_metrics(folder / name / "metrics.csv"))})
        return record.found[name]

    speed = train("short", SHORT, 1, "--eval.initial_validation", "false")["tokens_per_s"]
    steps = steps_for(arguments.minutes, speed, size["global_batch_size"] * size["max_seq_length"])
    limit = f"{max(120.0, 1.5 * arguments.minutes * 60):.0f}"  # where the short run was faster than the real one is
    train("run", steps, max(1, steps // 50), "--train.max_time", limit)
    final = folder / "run" / "final"
    if not final.is_dir():
        record.write(failed=f"stopped after {limit} s, before its end")
    elif find_spec("lm_eval") is None:
        record.write(failed="not evaluated: lm-eval is not here; gpu_wheels.py --evaluation brings it")
    else:
        common = ["--val_data", arguments.data, "--val_blocks", 256, "--max_seq_length", size["max_seq_length"]]
        if arguments.task_rows:
            common += ["--tasks", arguments.tasks, "--data_dir", arguments.task_rows]
            common += ["--limit", 8 if arguments.small else 200]
        scores: list[Row] = []
        for dtype in ("bfloat16", "float32"):  # that both are close shows that bfloat16 will do
            to = folder / f"scores-{dtype}"
            commands.call(f"eval-{dtype}", "eval", start, final, *common, "--dtype", dtype, "--out_dir", to)
            with (to / "results.csv").open(newline="") as results:
                for row in csv.DictReader(results):
                    scores.append({"dtype": dtype, **{name: row[name] for name in SCORE}})
            record.write(evaluation=scores)
    record.write(finished=True)
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--n", type=int, default=15, help="layers to take (15)")
    parser.add_argument("--minutes", type=float, default=5.0, help="of the real run (5)")
    parser.add_argument("--task_rows", type=Path)
    parser.add_argument("--tasks", default="piqa,arc_easy")
    parser.add_argument("--wheels", type=Path, help="folder of wheels to install what lacks from")
    parser.add_argument("--small", action="store_true", help="short samples and small steps, for a CPU")
    arguments = parser.parse_args()
    restart(arguments.wheels)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with tempfile.TemporaryDirectory() as made:
        record = run(arguments, Path(made))
    print(text(record.found))
    print(f"written to {arguments.out}")


if __name__ == "__main__":
    main()
