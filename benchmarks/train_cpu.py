"""Training steps on CPU: ours, litgpt as shipped, transformers' Trainer; equal weights and tokens, equal losses.

    python benchmarks/train_cpu.py --folder /some/disk [--rounds 2]

Writes benchmarks/results/train-cpu.json. Six minutes a round on 2 cores.
"""

import argparse
from pathlib import Path

from training import build_inputs, run_contenders, summarise, write

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
    results = run_contenders(arguments.folder, arguments.contenders, arguments.rounds)
    rows = summarise(results, spec, arguments.contenders[0])
    write("train-cpu", {"shape": SHAPE, "T": 256, "global_batch_size": 8, "micro_batch_size": 4, **spec, "rows": rows})


if __name__ == "__main__":
    main()
