"""Training steps on CPU: ours, litgpt as shipped, transformers' Trainer; equal weights and tokens, equal losses.

    python benchmarks/train_cpu.py --folder /some/disk [--rounds 2]

Writes benchmarks/results/train-cpu.json, with the rate of the machine's own matrix products and each contender's share
of it. Six minutes a round on 2 cores.
"""

import argparse
import json
from pathlib import Path

import torch
from matmul import ceilings
from training import RESULTS, build_inputs, machine, run_rounds, summarise, table

SHAPE = {"num_hidden_layers": 8, "hidden_size": 512, "intermediate_size": 1376, "num_attention_heads": 8}
CONTENDERS = [
    "ours-fp32",
    "litgpt-fp32",
    "transformers-fp32-compiled",
    "ours-fp32-eager",
    "ours-fp32-eager-plain-loss",
    "litgpt-fp32-eager",
    "transformers-fp32",
    "ours-bf16-mixed",
    "litgpt-bf16-mixed",
    "transformers-bf16-compiled",
    "ours-bf16-mixed-eager",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--contenders", nargs="+", default=CONTENDERS)
    arguments = parser.parse_args()
    spec = build_inputs(arguments.folder, SHAPE, steps=5, samples=8, micro_batch_size=4, T=256, warm_up=2)
    before = ceilings(torch.device("cpu"))
    results = run_rounds(arguments.folder, arguments.contenders, arguments.rounds)
    after = ceilings(torch.device("cpu"))  # other work on the machine comes and goes
    rates = {name: max(rate, after[name]) for name, rate in before.items()}
    rows = summarise(results, spec, rates)
    matmul = {name: round(rates[name] / 1e9, 1) for name in ("bf16", "fp32")}
    record = {"shape": SHAPE, "T": 256, "global_batch_size": 8, **spec, "matmul_gflops": matmul, "rows": rows}
    record["machine"] = machine()
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "train-cpu.json").write_text(json.dumps(record, indent=2) + "\n")
    print(table(rows))
    print(f"matrix products: {matmul['bf16']:,.0f} GFLOP/s in bf16, {matmul['fp32']:,.0f} in fp32")


if __name__ == "__main__":
    main()
