"""The first minutes on a new GPU, in one command: what it reaches, and training steps of ours against litgpt's.

    python benchmarks/gpu_first_run.py --out first-run [--wheels wheels] [--folder /some/disk]
    python benchmarks/gpu_first_run.py --out first-run --small       # tiny shapes, also without a GPU

The shape is OpenLLaMA-3B's first 13 layers with 2,048 tokens per sample and random weights, at the largest micro-batch
that the plan says fits. Before that every contender runs at a tiny shape, several at a time, to find in seconds what
fails. Needs a driver, torch and transformers; of the rest what lacks is installed from ``--wheels``
(``gpu_wheels.py``). Nothing is fetched. It ends within ``--budget`` seconds: contenders that no longer fit are named
as skipped. ``--out`` gets three files, rewritten after each contender: gpu-first-run.json, .txt, and -logs.tar.gz with
all that the contenders wrote. The json belongs into benchmarks/results/.
"""

import argparse
import json
import os
import shlex
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from bare import restart
from record import Record, Row

SHAPE = {"num_hidden_layers": 13, "hidden_size": 3200, "intermediate_size": 8640, "num_attention_heads": 32}
# Heads of 100, as in the large shape, and sizes that fp8 takes.
SMALL = {"num_hidden_layers": 2, "hidden_size": 400, "intermediate_size": 512, "num_attention_heads": 4}
STEPS, SAMPLES, LENGTH, WARM_UP = 6, 32, 2048, 2  # of which the warm-up is not timed
SMALL_SAMPLES, SMALL_LENGTH = 4, 128
CONTENDERS = [
    "ours-bf16-mixed",
    "litgpt-bf16-mixed",
    "ours-bf16-true",
    "litgpt-bf16-true",
    "ours-bf16-mixed-flash",
    "ours-bf16-mixed-cudnn",
    "ours-fp8",
    "ours-8bit",
    "transformers-bf16-compiled",
]
"""In the order of what must not be missing."""
SHARE = 0.85  # of the free memory that the plan may fill: litgpt needs more than ours
TIMEOUT, SMALL_TIMEOUT, EXPECTED = 150.0, 150.0, 45.0  # seconds; what a contender takes until one was seen


class Budget:
    """Seconds that are left of a whole, shared out to one contender after the other."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._end = clock, clock() + seconds

    @property
    def left(self) -> float:
        """Seconds, 0 at least."""
        return max(0.0, self._end - self._clock())

    def grant(self, most: float, expected: float) -> float | None:
        """Seconds that the next one may take, None where less than what it is expected to take is left."""
        return min(most, self.left) if self.left >= expected else None


def choose_micro_batch(predict: Callable[[int], int], available: float, samples: int) -> int:
    """The largest divisor of a step's samples whose predicted bytes are available; 1 where none is."""
    divisors = [size for size in range(1, samples + 1) if samples % size == 0]
    return max((size for size in divisors if predict(size) <= available), default=1)


def run_all(
    names: list[str],
    run: Callable[[str, float, int], Row],
    budget: Budget,
    micro_batch_size: int,
    timeout: float,
    save: Callable[[dict[str, Row]], None],
) -> dict[str, Row]:
    """Rows of contenders by name, each run with its name, seconds and micro-batch; ``save`` gets them after each.

    One that runs out of memory is tried again with half of the micro-batch.
    """
    rows: dict[str, Row] = {}
    times: list[float] = []
    shortest = EXPECTED
    for name in names:
        size, note, row = micro_batch_size, "", None
        while row is None:
            if (seconds := budget.grant(timeout, shortest)) is None:
                row = {"skipped": f"{budget.left:.0f} s of the budget are left, one takes {shortest:.0f} or more{note}"}
                break
            tried = run(name, seconds, size)
            if "step_seconds" in tried:
                times.append(tried["seconds"])
                shortest = min(times)
            if out_of_memory(tried) and size > 1:
                note, size = f"{note}; out of memory at a micro-batch of {size}", size // 2
                continue
            row = tried
        rows[name] = row | ({"note": note.removeprefix("; ")} if note else {})
        save(rows)
    return rows


def out_of_memory(row: Row) -> bool:
    """Whether a contender failed because the GPU's memory was full."""
    return "out of memory" in row.get("failed", "").lower()


def order(names: list[str], small: dict[str, Row]) -> list[str]:
    """The contenders with those that failed at the small shape behind the others."""
    return sorted(names, key=lambda name: "failed" in small.get(name, {}))


def chosen_by_default(capability: tuple[int, int] | None) -> str:
    """The contender whose attention is what ``ours-bf16-mixed`` takes by itself on a GPU of a compute capability."""
    return f"ours-bf16-mixed-{'cudnn' if capability and capability[0] in (9, 10) else 'flash'}"


def text(record: Row) -> str:
    """A record for reading: machine, ceilings, both tables, memory against the plan, attention's kernels."""
    from training import table

    machine = record.get("machine", {})
    lines = [f"{record.get('command', '')}", f"{machine.get('card') or 'no GPU'}, " + json.dumps(machine)]
    if matmul := record.get("matmul_tflops"):
        lines += ["matrix products, TFLOP/s: " + ", ".join(f"{name} {rate:,.2f}" for name, rate in matmul.items())]
        lines += [f"copies: {record['copy_gb_per_s']:,.0f} GB/s"]
    for title in ("small", "rows"):
        if rows := record.get(title):
            lines += ["", {"small": "tiny shape", "rows": "full shape"}[title], table(rows)]
    for name, row in record.get("rows", {}).items():
        kernels = [f"{each['kernel'][:60]} ({each['ms']} ms)" for each in row.get("attention_kernels", [])[:4]]
        lines += [f"attention of {name}: {', '.join(kernels)}"] * bool(kernels)
        if "note" in row:
            lines.append(f"{name}: {row['note']}")
    sizes = {name: row.get("memory_to_predicted") for name, row in record.get("rows", {}).items()}
    if machine.get("card") and any(sizes.values()):  # on a CPU the whole process is measured
        told = [f"{name} {ratio:.2f}" for name, ratio in sizes.items() if ratio]
        lines.append(f"memory against the plan's: {', '.join(told)}")
    state = "finished" if record["finished"] else "not finished"
    return "\n".join([*lines, "", f"{state} after {record.get('seconds', 0):.0f} s", ""])


def small_pass(folder: Path, names: list[str], budget: Budget, save: Callable[[dict[str, Row]], None]) -> None:
    """Every contender at a tiny shape, as many at a time as the processor's cores allow."""
    from training import build_inputs, run_contender, summarise

    folder.mkdir(parents=True, exist_ok=True)
    spec = build_inputs(folder, SMALL, 3, SMALL_SAMPLES, SMALL_SAMPLES // 2, SMALL_LENGTH, 1)
    found: dict[str, Row] = {}
    cores = os.cpu_count() or 1
    together = max(1, min(len(names), cores // 2))
    settings = {"TORCHINDUCTOR_COMPILE_THREADS": str(max(1, cores // together))}
    with ThreadPoolExecutor(together) as pool:

        def run(name: str) -> Row:
            seconds = budget.grant(SMALL_TIMEOUT, 1.0)
            if seconds is None:
                return {"skipped": "nothing is left of the budget"}
            return run_contender(folder, name, seconds, settings=settings)

        for name, row in zip(names, pool.map(run, names), strict=True):
            print(f"  tiny {name}: {row.get('failed') or row.get('skipped') or 'ran'}", flush=True)
            found[name] = row
            save(summarise(found, spec))


def full_pass(
    folder: Path, names: list[str], inputs: "Future[Row]", small: bool, budget: Budget, record: Record
) -> None:
    """The contenders one after the other, at a micro-batch that fits."""
    import torch
    from contenders import predicted_bytes
    from training import run_contender, summarise

    from inheritune_lit.checkpoint.config import load_config
    from inheritune_lit.model.devices import free_memory

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    spec, config = inputs.result(), load_config(folder / "checkpoint")
    samples, length = (SMALL_SAMPLES, SMALL_LENGTH) if small else (SAMPLES, LENGTH)

    def predict(size: int) -> int:
        return predicted_bytes(config, {**spec, "micro_batch_size": size}, samples, length, device)

    available = SHARE * (free_memory(device) or 0)
    try:
        size = choose_micro_batch(predict, available, samples)
        record.write(predicted_gb=round(predict(size) / 1e9, 2), available_gb=round(available / 1e9, 2))
        print(f"micro-batch {size}: {predict(size) / 1e9:.2f} GB predicted, {available / 1e9:.2f} free", flush=True)
    except Exception:  # a plan that fails is to be told, and not to cost the measurements
        size = SAMPLES // 8
        record.write(prediction_failed=traceback.format_exc())
        print(f"micro-batch {size}: the plan failed, see the record", flush=True)
    spec["micro_batch_size"] = size
    record.write(**spec)

    def run(name: str, seconds: float, micro_batch_size: int) -> Row:
        row = run_contender(folder, name, seconds, micro_batch_size)
        print(f"  {name}: {row.get('failed') or row['step_seconds']}, {budget.left:.0f} s left", flush=True)
        return row

    def save(rows: dict[str, Row]) -> None:
        record.write(rows=summarise(rows, spec, record.found["ceilings"]))

    run_all(names, run, budget, size, TIMEOUT, save)


def run(arguments: argparse.Namespace, folder: Path) -> Record:
    """The whole of it, with ``folder`` for what need not be kept."""
    import torch
    from matmul import ceilings
    from training import build_inputs, machine

    budget = Budget(arguments.budget)
    full, tiny = folder / "full", folder / "tiny"
    record = Record(arguments.out, "gpu-first-run", text, [tiny / "logs", full / "logs"])
    record.write(command=shlex.join(["python", *sys.argv]), machine=machine())
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rates = ceilings(device)
    if device.type == "cuda":
        torch.cuda.empty_cache()  # the contenders want all of it
    copies = rates.pop("copy_bytes")
    tflops = {name: round(rate / 1e12, 3) for name, rate in rates.items()}
    record.write(ceilings=rates, matmul_tflops=tflops, copy_gb_per_s=round(copies / 1e9, 1))
    print(f"{record.found['machine']['card'] or 'no GPU'}: {tflops} TFLOP/s, {copies / 1e9:,.0f} GB/s", flush=True)
    same = chosen_by_default(torch.cuda.get_device_capability() if device.type == "cuda" else None)
    names = arguments.contenders or [name for name in CONTENDERS if name != same]
    shape = SMALL if arguments.small else SHAPE
    size = (SMALL_SAMPLES, 1, SMALL_LENGTH) if arguments.small else (SAMPLES, 1, LENGTH)
    full.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(1) as pool:  # the weights are made meanwhile
        inputs = pool.submit(build_inputs, full, shape, STEPS, *size, WARM_UP)
        small_pass(tiny, names, budget, lambda rows: record.write(small=rows))
        record.write(shape=shape, samples_per_step=size[0], tokens_per_sample=size[2])
        full_pass(full, order(names, record.found["small"]), inputs, arguments.small, budget, record)
    record.write(finished=True)
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--wheels", type=Path, help="folder of wheels to install what lacks from")
    parser.add_argument("--folder", type=Path, help="10 GB of disk for weights; a temporary folder when not given")
    parser.add_argument("--budget", type=float, default=500, help="seconds in all (500)")
    parser.add_argument("--contenders", nargs="+")
    parser.add_argument("--small", action="store_true", help="tiny shapes, on whatever is there")
    arguments = parser.parse_args()
    restart(arguments.wheels)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a contender ends with this

    import torch

    if not (arguments.small or torch.cuda.is_available()):
        parser.error("there is no CUDA device; try the script with --small, or benchmarks/train_cpu.py")
    with tempfile.TemporaryDirectory() as made:
        record = run(arguments, arguments.folder or Path(made))
    print(text(record.found))
    print(f"written to {arguments.out}")


if __name__ == "__main__":
    main()
