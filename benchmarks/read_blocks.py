"""Reading random training samples, and ordering them: tokens a second and bytes, as ratios within one run.

    python benchmarks/read_blocks.py --folder /big/disk [--tokens 400000000]

Peers: samples as nanoGPT reads them (slices of np.memmap, stacked), and NumPy's materialised permutation. Writes
benchmarks/results/read-blocks.json. Needs two bytes a token on the disk, and reads from the page cache.
"""

import argparse
import json
import platform
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from inheritune_lit.data.megatron import DocumentWriter
from inheritune_lit.data.packed import PackedDataset
from inheritune_lit.data.sampler import MixtureSampler
from inheritune_lit.io.manifest import write_manifest

BLOCK_SIZE = 2048
WEIGHTS = {"a": 2000, "b": 5000, "c": 3000}
SHARES = {"a": 0.5, "b": 0.25, "c": 0.25}  # of the tokens
RESULTS = Path(__file__).parent / "results" / "read-blocks.json"
PERMUTE = "import numpy, sys; numpy.random.Generator(numpy.random.Philox(1)).permutation(int(sys.argv[1]))"


def write_data(folder: Path, tokens: int) -> None:
    """Packed data of random tokens in documents of a thousand tokens on average."""
    (folder / "train").mkdir(parents=True)
    draw, domains = np.random.default_rng(0), {}
    for name, share in SHARES.items():
        lengths = np.maximum(1, draw.lognormal(6.4, 1.0, size=int(tokens * share / 1000))).astype(np.int64)
        with DocumentWriter(folder / "train" / name, "uint16") as writer:
            for length in lengths:
                writer.add(draw.integers(0, 50_000, length, dtype=np.uint16))
        domains[name] = {"train": {"documents": len(lengths), "tokens": int(lengths.sum())}}
    tokenizer = {"file": "tokenizer.json", "sha256": "", "vocab_size": 50_000, "eos_id": None}
    described = {"tokenizer": tokenizer, "dtype": "uint16", "options": {}, "max_token_id": 49_999}
    write_manifest(folder, "packed_data", {**described, "domains": domains})


def seconds_a_batch(read: Callable[[range], object], batch: int, batches: int) -> float:
    """Median of five passes over other samples each."""
    times = []
    for turn in range(6):
        start = time.perf_counter()
        for number in range(turn * batches, (turn + 1) * batches):
            read(range(number * batch, (number + 1) * batch))
        times.append((time.perf_counter() - start) / batches)
    return sorted(times[1:])[2]


def read_speeds(folder: Path) -> dict[str, dict[str, float]]:
    """Million tokens a second by way of reading and batch size; padding counts as read."""
    ways: dict[str, Callable[[range], object]] = {}
    for documents in ("packed", "separate"):
        data = PackedDataset(folder, "train", BLOCK_SIZE, documents)
        sampler = MixtureSampler({name: size.samples for name, size in data.domains.items()}, 1, WEIGHTS)
        ways[documents] = lambda samples, data=data, sampler=sampler: data.batch(sampler.blocks(samples))
    tokens, draw = np.memmap(folder / "train" / "a.bin", dtype=np.uint16, mode="r"), np.random.default_rng(0)

    def nanogpt(samples: range) -> np.ndarray:
        firsts = draw.integers(0, len(tokens) - BLOCK_SIZE - 1, len(samples))
        return np.stack([tokens[first : first + BLOCK_SIZE + 1].astype(np.int64) for first in firsts])

    ways["nanoGPT's way"] = nanogpt
    speeds: dict[str, dict[str, float]] = {}
    for name, read in ways.items():
        speeds[name] = {
            str(batch): round(batch * BLOCK_SIZE / seconds_a_batch(read, batch, 4000 // batch) / 1e6)
            for batch in (4, 64)
        }
    return speeds


def order_costs(blocks: int) -> dict[str, float]:
    """What it costs to know the first million samples of an epoch, and to hold the order."""
    start = time.perf_counter()
    MixtureSampler({"all": blocks}, 1).blocks(range(1_000_000))
    ours = time.perf_counter() - start
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", PERMUTE, str(blocks)], check=True)
    theirs = time.perf_counter() - start
    return {
        "blocks": blocks,
        "sampler_seconds_for_1e6": round(ours, 3),
        "permutation_seconds": round(theirs, 2),
        "permutation_peak_mb": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=400_000_000)
    args = parser.parse_args()
    folder = args.folder / "read-blocks"
    write_data(folder, args.tokens)
    try:
        speeds = read_speeds(folder)
    finally:
        shutil.rmtree(folder)
    result = {
        "machine": {"cpu": platform.processor() or platform.machine(), "numpy": np.__version__},
        "tokens": args.tokens,
        "block_size": BLOCK_SIZE,
        "million_tokens_a_second": speeds,
        "ratio_to_nanogpts_way": {
            name: {batch: round(speed / speeds["nanoGPT's way"][batch], 2) for batch, speed in own.items()}
            for name, own in speeds.items()
        },
        "order": order_costs(100_000_000),
    }
    RESULTS.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
