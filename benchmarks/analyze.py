"""Analysing layers: attention rank against numpy, and a 3B model read layer by layer.

    python benchmarks/analyze.py rank --model FOLDER --data TEXT
    python benchmarks/analyze.py stream --folder /big/disk [--layers 26] [--num_sequences 10]

``rank`` compares ``attention_rank`` with plain loops of ``numpy.linalg.svd`` over GPT-2 medium's 24 x 16 heads at
T = 100, on a real model's attention and on random attention; the integers have to agree. ``stream`` runs
``inheritune analyze`` on random weights of OpenLLaMA-3B's shape (7 GB on the disk, the same as those of slice.py) and
measures its memory. Both add to benchmarks/results/analyze.json.
"""

import argparse
import json
import os
import platform
import resource
import sys
import time
from pathlib import Path

import numpy as np
import torch
from measuring import measure
from slice import SHAPES, build_reference

from inheritune_lit.analysis.measures import TIE, attention_rank
from inheritune_lit.analysis.sequences import draw_sequences
from inheritune_lit.inherit.reference import resolve
from inheritune_lit.inherit.stream import LayerStream
from inheritune_lit.model.attention import capture_attention

RESULT = Path(__file__).parent / "results" / "analyze.json"
TAU, T, HEADS, SEQUENCES, REPEATS = 0.9, 100, 24 * 16, 4, 3


def real_attention(model: Path, data: Path) -> torch.Tensor:
    """Attention of a model on text, all its layers and heads, as many matrices as GPT-2 medium's heads give."""
    with resolve(str(model)) as resolved, torch.no_grad():
        config = resolved.reference.config
        count = -(-HEADS * SEQUENCES // (config.n_layer * config.n_head))
        tokens_BT1 = draw_sequences(data, model, config.padded_vocab_size, count, T, seed=0)
        resolved = resolved.open()
        stream = LayerStream(resolved.reference, T, torch.device("cpu"))
        x_BTC, matrices = stream.embed(tokens_BT1[:, :-1]), []
        for layer in range(config.n_layer):
            with stream.layer(layer) as (block, run), capture_attention(block.attn) as calls:
                x_BTC = run(x_BTC)
            matrices += [captured.attention_BHTT.flatten(0, 1) for captured in calls]
    attention_NTT = torch.cat(matrices)
    chosen = torch.randperm(len(attention_NTT), generator=torch.Generator().manual_seed(0))[: HEADS * SEQUENCES]
    return attention_NTT[chosen]


def random_attention() -> torch.Tensor:
    """Causal attention of normal logits of scales from flat to sharp."""
    generator = torch.Generator().manual_seed(0)
    logits_NTT = torch.randn(HEADS * SEQUENCES, T, T, generator=generator)
    logits_NTT *= torch.tensor([0.3, 1, 2, 4]).repeat_interleave(HEADS * SEQUENCES // 4)[:, None, None]
    return logits_NTT.masked_fill(~torch.ones(T, T, dtype=torch.bool).tril(), -torch.inf).softmax(dim=-1)


def numpy_loop(attention_NTT: torch.Tensor, vectors: bool, dtype: torch.dtype) -> list[int]:
    """The rank of each matrix as Section 2 of the paper writes it down.

    Args:
        attention_NTT: the matrices.
        vectors: compute singular vectors too, as ``numpy.linalg.svd`` does unless told otherwise.
        dtype: of the matrices.
    """
    ranks = []
    for matrix_TT in attention_NTT.to(dtype).numpy():
        found = np.linalg.svd(matrix_TT) if vectors else np.linalg.svd(matrix_TT, compute_uv=False)
        energies = (found[1] if vectors else found).astype(np.float64) ** 2
        ranks.append(int((np.cumsum(energies) < (TAU - TIE) * energies.sum()).sum()) + 1)
    return ranks


def compare(attention_NTT: torch.Tensor) -> dict:
    """Best of several seconds of each way, the ways in turn so that a busy spell hits all."""
    ways = {
        "attention_rank": lambda: attention_rank(attention_NTT, TAU).tolist(),
        "numpy.linalg.svd, fp64": lambda: numpy_loop(attention_NTT, True, torch.float64),
        "numpy.linalg.svd, fp32": lambda: numpy_loop(attention_NTT, True, torch.float32),
        "numpy.linalg.svd(compute_uv=False), fp64": lambda: numpy_loop(attention_NTT, False, torch.float64),
    }
    seconds = {name: [] for name in ways}
    cpu_seconds = {name: [] for name in ways}
    ranks = {}
    for _ in range(REPEATS):
        for name, way in ways.items():
            start, used = time.perf_counter(), time.process_time()
            ranks[name] = way()
            seconds[name].append(time.perf_counter() - start)
            cpu_seconds[name].append(time.process_time() - used)
    found, exact = ranks["attention_rank"], ranks["numpy.linalg.svd, fp64"]
    others = list(ways)[1:]
    return {
        "matrices": len(attention_NTT),
        "mean_rank": float(np.mean(exact)),
        "different_integers": sum(one != other for one, other in zip(found, exact, strict=True)),
        "seconds": {name: round(min(values), 4) for name, values in seconds.items()},
        "cpu_seconds": {name: round(min(values), 4) for name, values in cpu_seconds.items()},
        "times_faster": {name: round(min(seconds[name]) / min(seconds["attention_rank"]), 1) for name in others},
        "times_less_cpu": {
            name: round(min(cpu_seconds[name]) / min(cpu_seconds["attention_rank"]), 1) for name in others
        },
    }


def stream(folder: Path, layers: int, sequences: int) -> dict:
    """``inheritune analyze`` on OpenLLaMA-3B's shape without a tokenizer: token ids are packed data of their own."""
    shape = SHAPES["openllama-3b"]
    whole = layers == shape["num_hidden_layers"]
    reference = folder / ("ref-openllama-3b" if whole else f"analyze-{layers}-layers")
    if not reference.is_dir():
        build_reference(reference, shape | {"num_hidden_layers": layers})
    out = folder / f"analyze-{os.getpid()}"
    command = [sys.executable, __file__, "analyze", str(reference), str(out), str(sequences)]
    row = measure(command)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    for path in out.iterdir():
        path.unlink()
    out.rmdir()
    return {"layers": layers, "num_sequences": sequences, **row, "peak_resident_mb": round(peak * 1024 / 1e6, 1)}


def analyze_random_tokens(reference: str, out: str, sequences: int) -> None:
    """The measured process: everything but the text."""
    from inheritune_lit.analysis import analyze
    from inheritune_lit.analysis.args import AnalyzeArgs

    analyze.draw_sequences = lambda data, tokenizer, vocabulary, count, length, seed: torch.randint(
        0, vocabulary, (count, length + 1), generator=torch.Generator().manual_seed(seed)
    )
    arguments = AnalyzeArgs(reference, "random token ids", out, num_sequences=sequences, drop_sequences=0)
    analyze.analyze_model(arguments)


def add(name: str, result: dict) -> None:
    """Put a result beside those of earlier runs."""
    results = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    machine = {"cores": os.cpu_count(), "load_average": os.getloadavg(), "torch": torch.__version__}
    results[name] = {"machine": machine | {"python": platform.python_version(), "numpy": np.__version__}, **result}
    RESULT.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results[name], indent=2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ways = parser.add_subparsers(dest="what", required=True)
    rank = ways.add_parser("rank")
    rank.add_argument("--model", type=Path, required=True)
    rank.add_argument("--data", type=Path, required=True)
    streamed = ways.add_parser("stream")
    streamed.add_argument("--folder", type=Path, required=True)
    streamed.add_argument("--layers", type=int, default=26)
    streamed.add_argument("--num_sequences", type=int, default=10)
    inside = ways.add_parser("analyze")
    inside.add_argument("reference")
    inside.add_argument("out")
    inside.add_argument("num_sequences", type=int)
    arguments = parser.parse_args()
    if arguments.what == "analyze":
        analyze_random_tokens(arguments.reference, arguments.out, arguments.num_sequences)
    elif arguments.what == "rank":
        threads = torch.get_num_threads()
        attention = {"real": real_attention(arguments.model, arguments.data), "random": random_attention()}
        result = {"threads": threads, **{name: compare(matrices) for name, matrices in attention.items()}}
        add(f"rank, {threads} threads", result)
    else:
        row = stream(arguments.folder, arguments.layers, arguments.num_sequences)
        add(f"stream, {arguments.layers} layers, {arguments.num_sequences} sequences", row)


if __name__ == "__main__":
    main()
