"""What the training benchmarks on CPU and GPU share: inputs, runs of the contenders, checks, the table."""

import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
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
PACKAGES = ("torch", "litgpt", "lightning", "transformers", "accelerate", "liger-kernel", "torchao", "bitsandbytes")


def build_inputs(
    folder: Path, shape: dict[str, Any], steps: int, samples: int, micro_batch_size: int, T: int, warm_up: int
) -> dict[str, Any]:
    """Weights as a litgpt checkpoint and a Hugging Face folder, tokens, and ``spec.json``; the spec."""
    if not (folder / "hf").is_dir():
        build_reference(folder / "hf", shape)
        slice_model(SliceArgs(str(folder / "hf"), n=shape["num_hidden_layers"], out_dir=folder / "checkpoint"))
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


def run_contenders(folder: Path, names: list[str], rounds: int) -> dict[str, dict[str, Any]]:
    """Each contender in its own process, one after the other, ``rounds`` times; a failure is a row of its own."""
    results: dict[str, dict[str, Any]] = {}
    for _ in range(rounds):
        for name in names:
            print(f"{name} ...", file=sys.stderr, flush=True)
            result = _run(folder, name)
            if name in results and "failed" not in result:
                result["step_seconds"] = results[name].get("step_seconds", []) + result["step_seconds"]
            results[name] = result
    return results


def _run(folder: Path, name: str) -> dict[str, Any]:
    (folder / f"{name}.json").unlink(missing_ok=True)
    command = [sys.executable, str(Path(__file__).parent / "contenders.py"), name, str(folder)]
    # Otherwise glibc's heap counts for up to half of the memory as soon as tensors of several sizes come and go.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "1000000", "MALLOC_TRIM_THRESHOLD_": "1000000"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    shutil.rmtree(folder / "trainer", ignore_errors=True)
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or ["no output"])[-1][:200]}
    return json.loads((folder / f"{name}.json").read_text())


def summarise(
    results: dict[str, dict[str, Any]], spec: dict[str, Any], first: str, ceiling: float | None = None
) -> dict[str, dict[str, Any]]:
    """Tokens a second and ratios to ``first``, median and best of all timed steps.

    Args:
        ceiling: FLOP/s of bf16 matrix products on this machine.

    Raises:
        RuntimeError: a figure above what the machine's matrix products allow.
    """
    reference = results[first]["losses"]
    rows: dict[str, dict[str, Any]] = {}
    for name, result in results.items():
        if "failed" in result:
            rows[name] = result
            continue
        median = spec["tokens_per_step"] / statistics.median(result["step_seconds"])
        best = spec["tokens_per_step"] / min(result["step_seconds"])
        limit = ceiling and (2 * ceiling if "fp8" in name else ceiling)  # fp8 products have twice the peak
        if limit and best * spec["flops_per_token"] > limit:
            raise RuntimeError(f"{name}: {best:.0f} tokens/s is above the {limit / 1e12:.0f} TFLOP/s of matmul")
        rows[name] = {
            "tokens_per_s_median": round(median, 1),
            "tokens_per_s_best": round(best, 1),
            "tflops_median": round(median * spec["flops_per_token"] / 1e12, 3),
            "peak_memory_mb": result["peak_memory_mb"],
            "warm_up_seconds": result["warm_up_seconds"],
            "largest_loss_difference": round(
                max(abs(a - b) for a, b in zip(result["losses"], reference, strict=True)), 5
            ),
            "losses": result["losses"],
            "kernels": result.get("kernels"),
        }
    for row in rows.values():
        if "failed" not in row:
            row["speed_to_first"] = round(row["tokens_per_s_median"] / rows[first]["tokens_per_s_median"], 3)
            row["memory_to_first"] = round(row["peak_memory_mb"] / rows[first]["peak_memory_mb"], 3)
    return rows


def write(name: str, record: dict[str, Any]) -> None:
    """``benchmarks/results/<name>.json``, and a table on the screen."""
    record["machine"] = {
        "cores": os.cpu_count(),
        "load_average": os.getloadavg(),
        "python": platform.python_version(),
        "card": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": _versions(),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=2) + "\n")
    print(f"{'':30}{'tok/s':>10}{'best':>10}{'TFLOP/s':>9}{'ratio':>7}{'MB':>10}{'ratio':>7}{'loss diff':>11}")
    for label, row in record["rows"].items():
        if "failed" in row:
            print(f"{label:30} failed: {row['failed'][:90]}")
            continue
        print(
            f"{label:30}{row['tokens_per_s_median']:>10,.0f}{row['tokens_per_s_best']:>10,.0f}"
            f"{row['tflops_median']:>9.2f}{row['speed_to_first']:>7.2f}{row['peak_memory_mb']:>10,.0f}"
            f"{row['memory_to_first']:>7.2f}{row['largest_loss_difference']:>11.5f}"
        )


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
