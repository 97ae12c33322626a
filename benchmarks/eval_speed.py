"""The adapter against lm-eval's own `hf` model: time and tokens on equal rows, equal scores checked in the same run.

    python benchmarks/eval_speed.py --rows DIR --checkpoint HF_FOLDER
    python benchmarks/eval_speed.py --rows DIR --shape --tokenizer DIR --folder /big/disk --device cuda --dtype bfloat16

Every model runs all tasks in a process of its own; `hf` once for each batch size, and its best counts, task by task.
Timed is what an adapter does: from requests as text to their scores. Writes benchmarks/results/eval-speed[-cuda].json.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "results"
LIMITS = {  # rows a task
    "mmlu_virology": 28,
    "mmlu_professional_psychology": 28,
    "truthfulqa_mc2": 12,
    "logiqa": 14,
    "arc_easy": 30,
    "boolq": 16,
    "lambada_openai": 40,
    "piqa": 40,
    "winogrande": 50,
    "wikitext": 1,
}
TOLERANCE, TOLERANCE_TEXT = 1e-3, 1e-1
"""Largest difference of a log-likelihood in fp32, of a continuation and of a page."""
PAGE = 10_000
"""Characters of the WikiText page."""
FOLDERS = {"truthfulqa_mc2": "truthfulqa_mc"}
N13 = {"num_hidden_layers": 13, "hidden_size": 3200, "intermediate_size": 8640, "num_attention_heads": 32}


def lay_out(rows: Path, folder: Path) -> None:
    """A folder of links to the tasks' rows under the tasks' own names, and one page of WikiText."""
    for task in LIMITS:
        name = "mmlu" if task.startswith("mmlu_") else task
        if name != "wikitext" and not (folder / name).exists():
            (folder / name).symlink_to((rows / FOLDERS.get(name, name)).resolve())
    (folder / "wikitext").mkdir()
    with (rows / "wikitext" / "raw_test.jsonl").open(encoding="utf-8") as file:
        page = json.loads(next(file))["page"][:PAGE]
    (folder / "wikitext" / "test.jsonl").write_text(json.dumps({"page": page}) + "\n", encoding="utf-8")


def work(arguments: argparse.Namespace) -> None:
    """One process: a model on all tasks."""
    from lm_eval.api.instance import Instance
    from lm_eval.evaluator import simple_evaluate

    from inheritune_lit.evaluation.tasks import TaskResolver

    lm, counted = open_ours(arguments) if arguments.worker == "ours" else open_hf(arguments)
    warm_up = Instance("loglikelihood", {}, ("The first forward pass", " starts threads."), 0)
    lm.loglikelihood([warm_up])
    spent = [0.0]
    for name in ("loglikelihood", "loglikelihood_rolling"):
        setattr(lm, name, timed(getattr(lm, name), spent))
    measured = {}
    for task, limit in LIMITS.items():
        limit = max(1, round(limit * arguments.scale))
        with tempfile.TemporaryDirectory() as scratch:
            resolved = TaskResolver(arguments.rows, None, Path(scratch)).resolve([task])
            spent[0], before = 0.0, counted()
            done = simple_evaluate(
                model=lm,
                tasks=resolved.specs,
                task_manager=resolved.manager,
                limit=limit,
                log_samples=True,
                bootstrap_iters=0,
            )
        after = counted()
        measured[task] = {
            "rows": limit,
            "seconds": round(spent[0], 3),
            **{key: after[key] - before[key] for key in after},
            "responses": [sample["filtered_resps"] for sample in done["samples"][task]],
            "metrics": {key: value for key, value in done["results"][task].items() if isinstance(value, float)},
        }
    arguments.out.write_text(json.dumps(measured))


def open_ours(arguments: argparse.Namespace):
    from inheritune_lit.evaluation.open_lm import open_lm

    lm = open_lm(arguments.checkpoint, dtype=arguments.dtype, device=arguments.device)
    return lm, lambda: {"tokens": lm.scorer.tokens_computed, "tokens_minimum": lm.scorer.tokens_minimum}


def open_hf(arguments: argparse.Namespace):
    from lm_eval.models.huggingface import HFLM

    from inheritune_lit.tokenizer import Tokenizer

    tokenizer = None
    if (arguments.checkpoint / "tokenizer.json").is_file():
        # transformers 5.3's AutoTokenizer rebuilds some BPE tokenizers wrongly: SmolLM2's gave other ids than its file.
        from transformers import PreTrainedTokenizerFast

        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(arguments.checkpoint / "tokenizer.json"))
        tokenizer.eos_token = tokenizer.pad_token = tokenizer.convert_ids_to_tokens(
            Tokenizer(arguments.checkpoint).eos_id
        )
    lm = HFLM(
        pretrained=str(arguments.checkpoint),
        tokenizer=tokenizer,
        dtype=arguments.dtype,
        device=arguments.device,
        batch_size=arguments.batch_size,
        add_bos_token=False,
        prefix_token_id=Tokenizer(arguments.checkpoint).eos_id,
    )
    tokens = [0]
    forward = lm._model_call

    def count(inputs, *rest, **more):
        tokens[0] += inputs.numel()
        return forward(inputs, *rest, **more)

    lm._model_call = count
    return lm, lambda: {"tokens": tokens[0]}


def timed(function, spent: list[float]):
    def call(*given, **more):
        start = time.perf_counter()
        result = function(*given, **more)
        spent[0] += time.perf_counter() - start
        return result

    return call


def run(arguments: argparse.Namespace) -> dict:
    """All processes of all rounds, and what they say together."""
    runs: dict[str, list[dict]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        rows = Path(scratch) / "rows"
        rows.mkdir()
        lay_out(arguments.rows, rows)
        out = Path(scratch) / "out.json"
        for _ in range(arguments.rounds):
            for worker, batch in [("ours", 0), *(("hf", batch) for batch in arguments.batch_sizes)]:
                command = [sys.executable, __file__, "--worker", worker, "--batch_size", str(batch)]
                command += ["--rows", str(rows), "--out", str(out), "--checkpoint", str(arguments.checkpoint)]
                command += ["--device", arguments.device, "--dtype", arguments.dtype, "--scale", str(arguments.scale)]
                threads = {"OMP_NUM_THREADS": str(arguments.threads), "TOKENIZERS_PARALLELISM": "true"}
                subprocess.run(command, check=True, env={**os.environ, **threads}, capture_output=not arguments.loud)
                runs.setdefault(worker if worker == "ours" else f"hf, batch {batch}", []).append(
                    json.loads(out.read_text())
                )
    return {task: compare(task, runs, arguments.dtype == "float32") for task in LIMITS}


def compare(task: str, runs: dict[str, list[dict]], exact: bool) -> dict:
    """One task: best times, tokens, and whether the scores are equal."""
    best = {name: min((one[task] for one in rounds), key=lambda row: row["seconds"]) for name, rounds in runs.items()}
    ours = best.pop("ours")
    name, theirs = min(best.items(), key=lambda item: item[1]["seconds"])
    gap = greatest_gap(ours["responses"], theirs["responses"])
    same = all(abs(value - theirs["metrics"][key]) <= 1e-3 * abs(value) for key, value in ours["metrics"].items())
    return {
        "rows": ours["rows"],
        "ours_seconds": ours["seconds"],
        "hf_seconds": {name: row["seconds"] for name, row in best.items()},
        "speedup": round(theirs["seconds"] / ours["seconds"], 2),
        "hf_best": name,
        "ours_tokens": ours["tokens"],
        "tokens_minimum": ours["tokens_minimum"],
        "tokens_over_minimum": round(ours["tokens"] / ours["tokens_minimum"], 3),
        "hf_tokens": theirs["tokens"],
        "equal": same and (not exact or gap < (TOLERANCE_TEXT if task == "wikitext" else TOLERANCE)),
        "largest_difference_of_a_loglikelihood": gap,
    }


def greatest_gap(ours: list, theirs: list) -> float:
    """Largest difference of numbers in two nests of lists of the same form; a flag that differs counts as 1."""
    if isinstance(ours, list):
        return max((greatest_gap(a, b) for a, b in zip(ours, theirs, strict=True)), default=0.0)
    return abs(float(ours) - float(theirs))


def make_n13(folder: Path, tokenizer: Path) -> Path:
    """The paper's OpenLLaMA-3B cut to 13 layers, with random weights: time does not depend on them."""
    from slice import build_reference

    from inheritune_lit.checkpoint.folder import TOKENIZER_FILES, copy_files

    checkpoint = folder / "n13"
    shutil.rmtree(checkpoint, ignore_errors=True)
    build_reference(checkpoint, N13)
    copy_files(tokenizer, checkpoint, TOKENIZER_FILES)
    return checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, required=True, help="<task>/<split>.jsonl")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--shape", action="store_true", help="random weights of the paper's 13-layer student instead")
    parser.add_argument("--tokenizer", type=Path, help="for --shape: a folder with a tokenizer of 32000 ids")
    parser.add_argument("--folder", type=Path, help="for --shape: where the checkpoint is written")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies the rows of every task")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--loud", action="store_true")
    parser.add_argument("--worker", choices=["ours", "hf"], help=argparse.SUPPRESS)
    parser.add_argument("--batch_size", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments)
        return
    if arguments.shape:
        arguments.checkpoint = make_n13(arguments.folder, arguments.tokenizer)
    start, tasks = time.monotonic(), run(arguments)
    import lm_eval
    import transformers

    results = {
        "command": "python benchmarks/eval_speed.py "
        + " ".join(f"--{key} {getattr(arguments, key)}" for key in ("device", "dtype", "threads", "rounds", "scale")),
        "model": "n13, random weights" if arguments.shape else arguments.checkpoint.name,
        "machine": {
            "cores": os.cpu_count(),
            "device": torch.cuda.get_device_name() if arguments.device.startswith("cuda") else platform.machine(),
            "load_average": os.getloadavg(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "lm_eval": lm_eval.__version__,
            "transformers": transformers.__version__,
        },
        "seconds": round(time.monotonic() - start),
        "tasks": tasks,
    }
    RESULTS.mkdir(exist_ok=True)
    name = "eval-speed.json" if arguments.device == "cpu" else f"eval-speed-{arguments.device.split(':')[0]}.json"
    (RESULTS / name).write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results, indent=2))
    if differing := [task for task, row in tasks.items() if not row["equal"]]:
        raise SystemExit(f"scores differ: {', '.join(differing)}")


if __name__ == "__main__":
    main()
