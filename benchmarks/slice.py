"""Slicing against `cp`, mergekit and litgpt: time, processor time and peak anonymous memory, as ratios within one run.

    python benchmarks/slice.py --folder /big/disk [--shape openllama-3b|llama2-7b] [--mergekit path/to/mergekit-yaml]

Writes benchmarks/results/slice-<shape>.json. Needs three times the reference's size on the disk.
"""

import argparse
import json
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from measuring import measure

from inheritune_lit.checkpoint.formats import write_safetensors
from inheritune_lit.checkpoint.tensors import TensorSpec

SHAPES = {
    "openllama-3b": {
        "n": 13,
        "num_hidden_layers": 26,
        "hidden_size": 3200,
        "intermediate_size": 8640,
        "num_attention_heads": 32,
        "litgpt": "open_llama_3b",
    },
    "llama2-7b": {
        "n": 7,
        "num_hidden_layers": 32,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_attention_heads": 32,
        "litgpt": "Llama-2-7b-hf",
    },
    "tiny": {
        "n": 2,
        "num_hidden_layers": 4,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_attention_heads": 4,
        "litgpt": None,
    },
}
RESULTS = Path(__file__).parent / "results"


def build_reference(folder: Path, shape: dict) -> None:
    """Write a LLaMA of random bf16 values in shards of 5 GB, and its configuration."""
    width, mlp, depth = shape["hidden_size"], shape["intermediate_size"], shape["num_hidden_layers"]
    tensors: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (32000, width)}
    for layer in range(depth):
        prefix = f"model.layers.{layer}."
        tensors |= {f"{prefix}self_attn.{part}_proj.weight": (width, width) for part in "qkvo"}
        tensors |= {f"{prefix}mlp.{part}_proj.weight": (mlp, width) for part in ("gate", "up")}
        tensors |= {f"{prefix}mlp.down_proj.weight": (width, mlp)}
        tensors |= {f"{prefix}{norm}_layernorm.weight": (width,) for norm in ("input", "post_attention")}
    tensors |= {"model.norm.weight": (width,), "lm_head.weight": (32000, width)}
    shards: list[dict] = [{}]
    for name, size in tensors.items():
        if sum(2 * torch.Size(other).numel() for _, other in shards[-1].values()) > 5e9:
            shards.append({})
        shards[-1][name] = (torch.bfloat16, size)
    folder.mkdir(parents=True)
    noise = (torch.randn(1 << 23) * 0.02).bfloat16()
    weight_map = {}
    for number, specs in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        weight_map |= dict.fromkeys(specs, file)
        layout = {name: TensorSpec(shape, dtype) for name, (dtype, shape) in specs.items()}
        write_safetensors(folder / file, layout, lambda name: random_chunks(name, tensors[name], noise))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    hf = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "vocab_size": 32000,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        **{key: value for key, value in shape.items() if key not in ("n", "litgpt")},
    }
    (folder / "config.json").write_text(json.dumps(hf))


def random_chunks(name: str, size: tuple[int, ...], noise: torch.Tensor) -> Iterator[torch.Tensor]:
    """A tensor's values, cut from ``noise`` at a place that depends on the name; ones for norms."""
    if "norm" in name:
        yield torch.ones(size, dtype=noise.dtype)
        return
    left, start = torch.Size(size).numel(), sum(name.encode()) * 997 % 100_000
    while left:
        chunk = noise[start : start + left]
        yield chunk
        left, start = left - chunk.numel(), 0


TIMED = """
import json, time
from pathlib import Path
{imports}
start, used = time.monotonic(), time.process_time()
{work}
spent = dict(seconds=round(time.monotonic() - start, 2), cpu_seconds=round(time.process_time() - used, 2))
Path({result!r}).write_text(json.dumps(spent))
"""


def measure_inside(imports: str, work: str, folder: Path) -> dict[str, float]:
    """Like ``measure`` for ``work`` in a Python process of its own, but its imports take no time."""
    result = folder / "inside.json"
    command = [sys.executable, "-c", TIMED.format(imports=imports, work=work, result=str(result))]
    return measure(command) | json.loads(result.read_text())


def read_through(folder: Path) -> None:
    """Read a folder's files, so that every measurement finds them in the page cache if they fit."""
    for path in sorted(folder.iterdir()):
        with open(path, "rb", buffering=0) as file:
            while file.read(1 << 24):
                pass


def drop(path: Path) -> None:
    """Remove what the last measurement has written."""
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    # Otherwise the next measurement pays for writing back this one's pages.
    os.sync()


LITGPT_IMPORTS = """
from litgpt.scripts.convert_hf_checkpoint import convert_hf_checkpoint
from litgpt.utils import incremental_save, lazy_load
"""
LITGPT = """
convert_hf_checkpoint(Path({ref!r}), model_name={name!r}, dtype=None)
with incremental_save(Path({out!r})) as saver:
    state = lazy_load(Path({ref!r}) / "lit_model.pth")
    keep = {{}}
    for key, value in state.items():
        layer = int(key.split(".")[2]) if ".h." in key else 0
        if layer < {n}:
            keep[key] = saver.store_early(value._load_tensor() if hasattr(value, "_load_tensor") else value)
    saver.save(keep)
"""


def run(shape_name: str, folder: Path, mergekit: Path | None, repeats: int) -> dict:
    """All measurements for one shape; every repetition measures each of them once, so that a busy spell hits all."""
    shape = SHAPES[shape_name]
    ref, out, copy = folder / f"ref-{shape_name}", folder / "out", folder / "copy"
    if not ref.is_dir():
        build_reference(ref, shape)
    slicing = "from inheritune_lit import SliceArgs, slice_model"
    exporting = "from inheritune_lit import ExportArgs, export"
    work = f"slice_model(SliceArgs({str(ref)!r}, n={shape['n']}, out_dir=Path({str(out)!r})))"
    command = [sys.executable, "-m", "inheritune_lit", "slice", "--ref", str(ref), "--n", str(shape["n"])]
    rows: dict[str, list[dict]] = {}

    def add(name: str, row: dict, *made: Path) -> None:
        rows.setdefault(name, []).append(row)
        for path in made:
            drop(path)

    for _ in range(repeats):
        read_through(ref)
        add("slice", measure_inside(slicing, work, folder), out)
        add("slice command", measure([*command, "--out_dir", str(out)]), out)
        add(
            "slice command, sources not hashed", measure([*command, "--hash_sources=false", "--out_dir", str(out)]), out
        )
        unhashed = work.replace("n=", "hash_sources=False, n=")
        add("slice, sources not hashed", measure_inside(slicing, unhashed, folder))
        kept = (out / "lit_model.pth").stat().st_size
        add("cp", measure(["cp", str(out / "lit_model.pth"), str(copy)]), copy)
        exported = f"export(ExportArgs(Path({str(out)!r}), Path({str(copy)!r})))"
        add("export", measure_inside(exporting, exported, folder), out, copy)
        if mergekit:
            recipe = folder / "mergekit.yaml"
            recipe.write_text(
                f"slices:\n- sources:\n  - model: {ref}\n    layer_range: [0, {shape['n']}]\n"
                "merge_method: passthrough\ndtype: bfloat16\n"
            )
            add("mergekit", measure([str(mergekit), str(recipe), str(out), "--lazy-unpickle"]), out)
        if shape["litgpt"]:
            work_litgpt = LITGPT.format(ref=str(ref), name=shape["litgpt"], out=str(out), n=shape["n"])
            row = measure_inside(LITGPT_IMPORTS, work_litgpt, folder)
            add("litgpt", row, out, ref / "lit_model.pth", ref / "model_config.yaml")
    return {
        "shape": shape_name,
        "n": shape["n"],
        "kept_bytes": kept,
        "machine": {
            "cores": os.cpu_count(),
            "load_average": os.getloadavg(),
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
        "ratios": ratios(rows),
        "rows": rows,
    }


def ratios(rows: dict[str, list[dict]]) -> dict[str, dict[str, float]]:
    """Best against best. mergekit is timed as a command, with its imports; the others without."""
    pairs = (
        ("slice", "cp"),
        ("slice, sources not hashed", "cp"),
        ("slice", "litgpt"),
        ("slice, sources not hashed", "litgpt"),
        ("slice command", "mergekit"),
        ("slice command, sources not hashed", "mergekit"),
        ("export", "cp"),
    )
    found = {}
    for measured in ("seconds", "cpu_seconds", "peak_anonymous_mb"):
        best = {name: min(row[measured] for row in measurements) for name, measurements in rows.items()}
        found[measured] = {
            f"{one} / {other}": round(best[one] / best[other], 2)
            for one, other in pairs
            if other in best and not (measured == "peak_anonymous_mb" and other == "cp")
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--shape", choices=list(SHAPES), default="openllama-3b")
    parser.add_argument("--mergekit", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    results = run(arguments.shape, arguments.folder, arguments.mergekit, arguments.repeats)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"slice-{arguments.shape}.json").write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
