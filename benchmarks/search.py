"""Searching layers of a large model: time and memory, against a plain loop over transformers' model in memory.

    python benchmarks/search.py --folder /big/disk [--shape openllama-3b] [--rounds 3] [--num_sequences 4]

Both remove layers greedily from random weights of a shape (OpenLLaMA-3B's: 7 GB on the disk, the same as those of
slice.py), by the loss of the same random tokens. The loop keeps the whole model in memory and runs each candidate from
its first layer; ``inheritune search`` scores four more sets of layers in each round and reads the files' hashes. Adds
to benchmarks/results/search.json.
"""

import argparse
import json
import os
import platform
import resource
import shutil
import sys
from pathlib import Path

import torch
from measuring import measure
from slice import SHAPES, build_reference

RESULT = Path(__file__).parent / "results" / "search.json"
OPTIONS = ("num_sequences", "seq_length", "precision", "repair")
DTYPES = {"bf16-mixed": torch.bfloat16, "32-true": torch.float32}


def random_tokens(count: int, length: int, seed: int = 0) -> torch.Tensor:
    """Sequences with the token that follows each, (count, length + 1)."""
    return torch.randint(0, 32000, (count, length + 1), generator=torch.Generator().manual_seed(seed))


def ours(reference: Path, out: Path, args: argparse.Namespace) -> list[list[int]]:
    """``inheritune search`` without a tokenizer: returns the layers that are left after each round."""
    from inheritune_lit.analysis import search
    from inheritune_lit.analysis.args import SearchArgs

    search.draw_sequences = lambda data, tokenizer, vocabulary, count, length, seed, split: random_tokens(count, length)
    depth = SHAPES[args.shape]["num_hidden_layers"]
    options = {name: getattr(args, name) for name in OPTIONS}
    arguments = SearchArgs(str(reference), "random tokens", out, n_min=depth - args.rounds, **options)
    return [found.layers for found in search.search_layers(arguments).search.found.values()]


@torch.no_grad()
def loop(reference: Path, args: argparse.Namespace) -> list[list[int]]:
    """The same search as a user of transformers would write it."""
    from torch.nn import functional as F
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(reference, dtype=DTYPES[args.precision])
    tokens_BT1, blocks = random_tokens(args.num_sequences, args.seq_length), list(model.model.layers)

    def loss_of(layers: list[int]) -> float:
        model.model.layers = torch.nn.ModuleList(blocks[layer] for layer in layers)
        losses = []
        for tokens_1T1 in tokens_BT1.split(1):
            logits_TV = model(tokens_1T1[:, :-1], use_cache=False).logits[0].float()
            losses.append(F.cross_entropy(logits_TV, tokens_1T1[0, 1:]).item())
        return sum(losses)

    kept, found = list(range(len(blocks))), []
    for _ in range(args.rounds):
        kept = min(([each for each in kept if each != gone] for gone in kept), key=loss_of)
        found.append(kept)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--shape", choices=SHAPES, default="openllama-3b")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--num_sequences", type=int, default=4)
    parser.add_argument("--seq_length", type=int, default=256)
    parser.add_argument("--precision", choices=DTYPES, default="bf16-mixed")
    parser.add_argument("--repair", choices=["none", "linear"], default="none", help="linear: without the loop")
    parser.add_argument("--way", choices=["search", "loop"], help="the measured process, which the others start")
    args = parser.parse_args()
    reference, out = args.folder / f"ref-{args.shape}", args.folder / f"search-{args.shape}"
    if args.way:
        found = ours(reference, out, args) if args.way == "search" else loop(reference, args)
        # Linux counts KB; file pages that are mapped count too.
        peak_mb = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6, 1)
        out.with_suffix(f".{args.way}.json").write_text(json.dumps({"peak_resident_mb": peak_mb, "found": found}))
        return
    if not reference.is_dir():
        build_reference(reference, SHAPES[args.shape])
    rows = {}
    for way in ("search", "loop") if args.repair == "none" else ("search",):
        shutil.rmtree(out, ignore_errors=True)
        rows[way] = measure([sys.executable, *sys.argv, "--way", way])
        said = out.with_suffix(f".{way}.json")
        rows[way] |= json.loads(said.read_text())
        said.unlink()
    shutil.rmtree(out, ignore_errors=True)
    found = [row.pop("found") for row in rows.values()]
    result = {
        "machine": {"cores": os.cpu_count(), "load_average": os.getloadavg(), "python": platform.python_version()},
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        **{name: getattr(args, name) for name in ("rounds", *OPTIONS)},
        **rows,
    }
    if "loop" in rows:
        result["same_layers"] = found[0] == found[1]
        for name, unit in (("times_faster", "seconds"), ("times_less_cpu", "cpu_seconds")):
            result[name] = round(rows["loop"][unit] / rows["search"][unit], 2)
    results = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    name = args.shape if args.repair == "none" else f"{args.shape}, repaired"
    RESULT.write_text(json.dumps(results | {name: result}, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
