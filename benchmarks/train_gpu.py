"""Training steps on one GPU at the shape of OpenLLaMA-3B's first 13 layers, T = 2048, 64 samples a step.

    python benchmarks/train_gpu.py --folder /some/disk [--contenders ours-bf16-true litgpt-bf16-true ...]
    python benchmarks/train_gpu.py --folder /some/disk --small       # a few layers, on whatever is there

Writes benchmarks/results/train-gpu.json. Takes about 75 seconds a contender: give half of them to each of two calls,
``--contenders``, where a call may not take ten minutes; rows of earlier calls are kept. Refuses figures above what
matrix products reach on the card, measured at the start.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from training import RESULTS, build_inputs, run_contenders, summarise, write

SHAPE = {"num_hidden_layers": 13, "hidden_size": 3200, "intermediate_size": 8640, "num_attention_heads": 32}
SMALL = {"num_hidden_layers": 2, "hidden_size": 200, "intermediate_size": 512, "num_attention_heads": 2}
CONTENDERS = [
    "ours-bf16-true",
    "ours-bf16-mixed",
    "litgpt-bf16-mixed",
    "litgpt-bf16-true",
    "ours-fp8",
    "ours-24gb",
    "transformers-bf16-compiled",
    "transformers-bf16-liger",
]


def matmul_ceiling(device: torch.device) -> float:
    """FLOP/s of the best of several large bf16 matrix products."""
    best = 0.0
    for size in (4096, 8192, 16384) if device.type == "cuda" else (1024,):
        a = torch.randn(size, size, device=device, dtype=torch.bfloat16)
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(10):
            a @ a
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = max(best, 10 * 2 * size**3 / (time.perf_counter() - began))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--contenders", nargs="+", default=CONTENDERS)
    parser.add_argument("--micro_batch_size", type=int, default=16)
    parser.add_argument("--small", action="store_true")
    arguments = parser.parse_args()
    if not (arguments.small or torch.cuda.is_available()):
        parser.error("there is no CUDA device; try the script with --small, or benchmarks/train_cpu.py")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    ceiling = matmul_ceiling(device)
    size = (5, 4, 2, 128, 2) if arguments.small else (7, 64, arguments.micro_batch_size, 2048, 2)
    spec = build_inputs(arguments.folder, SMALL if arguments.small else SHAPE, *size)
    name = f"train-gpu{'-small' if arguments.small else ''}"
    results = run_contenders(arguments.folder, arguments.contenders, rounds=1)
    first = "ours-bf16-true"
    kept = arguments.folder / "results.json"
    results = (json.loads(kept.read_text()) if kept.is_file() else {}) | results
    kept.write_text(json.dumps(results))
    rows = summarise(results, spec, first, ceiling)
    shape = SMALL if arguments.small else SHAPE
    write(name, {"shape": shape, "matmul_tflops": ceiling / 1e12, **spec, "rows": rows})
    print(f"matmul reaches {ceiling / 1e12:.0f} TFLOP/s; written to {RESULTS / name}.json")


if __name__ == "__main__":
    main()
