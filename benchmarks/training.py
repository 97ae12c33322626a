"""What the training benchmarks on CPU and GPU share: inputs, runs of the contenders, checks, the table."""

import json
import os
import platform
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from slice import build_reference

from inheritune_lit.checkpoint.config import load_config
from inheritune_lit.inherit.args import SliceArgs
from inheritune_lit.inherit.slice import slice_model
from inheritune_lit.model.flops import flops_per_token

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "triton", "litgpt", "lightning", "transformers", "accelerate")
PACKAGES += ("liger-kernel", "torchao", "bitsandbytes", "lm-eval", "numpy")
Row = dict[str, Any]


def build_inputs(
    folder: Path, shape: Row, steps: int, samples: int, micro_batch_size: int, T: int, warm_up: int
) -> Row:
    """Weights as a litgpt checkpoint and a Hugging Face folder, tokens, and ``spec.json``; the spec."""
    if not (folder / "checkpoint").is_dir():
        shutil.rmtree(folder / "hf", ignore_errors=True)
        build_reference(folder / "hf", shape)
        args = {"n": shape["num_hidden_layers"], "out_dir": folder / "checkpoint", "hash_sources": False}
        slice_model(SliceArgs(str(folder / "hf"), **args))
    # Zipf, so that there is something to learn.
    ranks = np.random.default_rng(0).zipf(1.3, size=(steps, samples, T + 1))
    np.save(folder / "tokens.npy", (ranks % 32000).astype(np.int64))
    spec = {
        "micro_batch_size": micro_batch_size,
        "lr": 3e-4,
        "warm_up": warm_up,
        "flops_per_token": flops_per_token(load_config(folder / "checkpoint"), T),
        "tokens_per_step": samples * T,
        "flops": 1e15,  # of the run that these steps are from: the kernels are those of a run of hours
    }
    (folder / "spec.json").write_text(json.dumps(spec))
    return spec


def run_rounds(folder: Path, names: list[str], rounds: int) -> dict[str, Row]:
    """Each contender in its own process, one after the other, ``rounds`` times; a failure is a row of its own."""
    results: dict[str, Row] = {}
    for _ in range(rounds):
        for name in names:
            print(f"{name} ...", file=sys.stderr, flush=True)
            result = run_contender(folder, name)
            if name in results and "failed" not in result:
                result["step_seconds"] = results[name].get("step_seconds", []) + result["step_seconds"]
            results[name] = result
    return results


def run_contender(
    folder: Path,
    name: str,
    timeout: float | None = None,
    micro_batch_size: int | None = None,
    settings: dict[str, str] | None = None,
) -> Row:
    """Its result, or a row that says why it ``failed``; all it wrote is in ``logs/NAME.txt``.

    After ``timeout`` seconds it is ended, and with it all processes that it has started. ``settings`` are added to its
    environment.
    """
    (folder / f"{name}.json").unlink(missing_ok=True)
    (folder / "logs").mkdir(exist_ok=True)
    command = [sys.executable, str(Path(__file__).parent / "contenders.py"), name, str(folder)]
    if micro_batch_size:
        command += ["--micro_batch_size", str(micro_batch_size)]
    # Otherwise glibc's heap counts for up to half of the memory as soon as tensors of several sizes come and go.
    environment = {"MALLOC_MMAP_THRESHOLD_": "1000000", "MALLOC_TRIM_THRESHOLD_": "1000000"}
    environment = {**os.environ, **environment, **(settings or {})}
    log = folder / "logs" / f"{name}.txt"
    began = time.monotonic()
    with log.open("w") as stream:
        code = run_within(command, timeout, stdout=stream, stderr=subprocess.STDOUT, env=environment)
    seconds = round(time.monotonic() - began, 1)
    if code is None:
        return {"failed": f"took more than {timeout:.0f} s", "seconds": seconds}
    if code or not (folder / f"{name}.json").is_file():
        text = log.read_text(errors="replace")
        return {"failed": error_line(text) or f"ended with {code}, see its log", "seconds": seconds}
    return json.loads((folder / f"{name}.json").read_text()) | {"seconds": seconds}


def run_within(command: list[str], timeout: float | None, **options: Any) -> int | None:
    """Exit code of a command, None where it was still running after ``timeout`` seconds and was ended."""
    process = subprocess.Popen(command, start_new_session=True, **options)  # so that all of it can be ended
    try:
        return process.wait(timeout)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def error_line(text: str) -> str:
    """The line of an output that says what went wrong: the last that an exception begins, else the last there is."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Interrupt|Exit|Unsupported)\b", line)]
    return (errors or lines or [""])[-1][:300]


def summarise(results: dict[str, Row], spec: Row, ceilings: dict[str, float] | None = None) -> dict[str, Row]:
    """Tokens a second, median and best of all timed steps, and ratios to the first contender that ran.

    Rows of contenders that failed or were skipped stay as they are.

    Args:
        ceilings: what ``matmul.ceilings`` found. Each row gets its share of the one of its type; above 1, where time or
            FLOPs are counted wrong, it is marked ``suspect``.
    """
    ran = {name: result for name, result in results.items() if "step_seconds" in result}
    rows: dict[str, Row] = {}
    for name, result in results.items():
        if name not in ran:
            rows[name] = result
            continue
        first = ran[next(iter(ran))]
        median = spec["tokens_per_step"] / statistics.median(result["step_seconds"])
        best = spec["tokens_per_step"] / min(result["step_seconds"])
        pairs = zip(result["losses"], first["losses"], strict=False)
        row = {
            "tokens_per_s_median": round(median, 1),
            "tokens_per_s_best": round(best, 1),
            "tflops_median": round(median * spec["flops_per_token"] / 1e12, 3),
            "largest_loss_difference": round(max(abs(a - b) for a, b in pairs), 5),
            "speed_to_first": round(statistics.median(first["step_seconds"]) * median / spec["tokens_per_step"], 3),
            "memory_to_first": round(result["peak_memory_mb"] / first["peak_memory_mb"], 3),
        }
        if predicted := result.get("predicted_memory_mb"):
            row["memory_to_predicted"] = round(result["peak_memory_mb"] / predicted, 3)
        if ceiling := _ceiling(name, ceilings or {}):
            row["share_of_matmul"] = round(median * spec["flops_per_token"] / ceiling, 3)
            if best * spec["flops_per_token"] > ceiling:
                row["suspect"] = f"faster than matrix products, {ceiling / 1e12:.2f} TFLOP/s"
        rows[name] = row | result
    return rows


def _ceiling(name: str, ceilings: dict[str, float]) -> float | None:
    """What matrix products reach in a contender's type; fp8 has twice the rate of bf16 where it was not measured."""
    if "fp8" in name:
        return ceilings.get("fp8") or 2 * ceilings.get("bf16", 0.0) or None
    return ceilings.get("fp32" if "fp32" in name else "bf16")


COLUMNS: dict[str, tuple[str, Callable[[Row], str]]] = {
    "tokens/s": ("tokens_per_s_median", lambda row: f"{row['tokens_per_s_median']:,.0f}"),
    "best": ("tokens_per_s_best", lambda row: f"{row['tokens_per_s_best']:,.0f}"),
    "TFLOP/s": ("tflops_median", lambda row: f"{row['tflops_median']:.2f}"),
    "of matmul": ("share_of_matmul", lambda row: f"{row['share_of_matmul']:.0%}"),
    "ratio": ("speed_to_first", lambda row: f"{row['speed_to_first']:.2f}"),
    "MB": ("peak_memory_mb", lambda row: f"{row['peak_memory_mb']:,.0f}"),
    "predicted": ("predicted_memory_mb", lambda row: f"{row['predicted_memory_mb']:,.0f}"),
    "loss diff": ("largest_loss_difference", lambda row: f"{row['largest_loss_difference']:.5f}"),
    "batch": ("micro_batch_size", lambda row: f"{row['micro_batch_size']}"),
    "attention": ("attention", lambda row: row["attention"].removesuffix("_attention")),
}


def table(rows: dict[str, Row]) -> str:
    """The rows as lines of text, for the screen and for files."""
    lines = [f"{'':27}" + "".join(f"{title:>12}" for title in COLUMNS)]
    for name, row in rows.items():
        if "step_seconds" not in row:
            lines.append(f"{name:27}  " + (f"skipped: {row['skipped']}" if "skipped" in row else f"{row['failed']}"))
            continue
        cells = (show(row) if key in row else "" for key, show in COLUMNS.values())
        lines.append(f"{name:27}" + "".join(f"{cell:>12}" for cell in cells))
        if "suspect" in row:
            lines.append(f"{'':29}suspect: {row['suspect']}")
    return "\n".join(lines)


def machine() -> Row:
    """What the figures of this process were measured on, and with which versions."""
    found: Row = {
        "cores": os.cpu_count(),
        "load_average": os.getloadavg(),
        "python": platform.python_version(),
        "card": None,
        "versions": _versions(),
    }
    if torch.cuda.is_available():
        card = torch.cuda.get_device_properties(0)
        found |= {
            "card": card.name,
            "capability": f"{card.major}.{card.minor}",
            "memory_gb": round(card.total_memory / 1e9, 1),
            "multiprocessors": card.multi_processor_count,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "driver": _driver(),
        }
    return found


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _driver() -> str | None:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, timeout=20).stdout.strip() or None
    except (OSError, subprocess.TimeoutExpired):
        return None
