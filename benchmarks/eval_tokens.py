"""Tokens a whole suite at full size sends through a network, against one request at a time and the fewest possible.

    python benchmarks/eval_tokens.py --rows DIR --tokenizer DIR --suite paper-table5

A network of two narrow layers stands for any other: how requests are packed depends on texts and tokenizer alone. Tasks
without rows in DIR are left out and named. Writes benchmarks/results/eval-tokens.json.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import torch
from eval_speed import FOLDERS, RESULTS
from litgpt.model import GPT, Config

from inheritune_lit.evaluation.loading import load_tasks
from inheritune_lit.evaluation.open_lm import Encoder, LitLM
from inheritune_lit.evaluation.score_cache import Ranks, ScoreCache, SharedWork
from inheritune_lit.evaluation.scorer import score_task
from inheritune_lit.evaluation.suite import load_suite
from inheritune_lit.evaluation.tasks import TaskResolver
from inheritune_lit.tokenizer import Tokenizer

BLOCK = 2048
SHAPE = {"n_layer": 2, "n_head": 2, "n_embd": 32, "intermediate_size": 64, "rotary_percentage": 1.0, "bias": False}


def open_model(tokenizer_dir: Path, max_batch_tokens: int) -> LitLM:
    tokenizer = Tokenizer(tokenizer_dir)
    torch.manual_seed(0)
    vocabulary = {"vocab_size": tokenizer.vocab_size, "padded_vocab_size": tokenizer.vocab_size}
    config = Config(**SHAPE, **vocabulary, block_size=BLOCK, norm_class_name="RMSNorm", mlp_class_name="LLaMAMLP")
    encoder = Encoder(tokenizer, tokenizer.vocab_size, "none")
    return LitLM(GPT(config), encoder, max_batch_tokens, {}, SharedWork(ScoreCache(None, {}), Ranks()))


def count_alone(lm: LitLM) -> list[int]:
    """One number in a list: tokens if each distinct request went through the network alone, from now on."""
    alone = [0]
    score = lm.scorer.score

    def count(jobs):
        alone[0] += sum(len(context) // 4 for context, _ in dict.fromkeys(jobs))
        return score(jobs)

    lm.scorer.score = count
    return alone


def counts(lm: LitLM, alone: list[int]) -> tuple[float, ...]:
    scorer = lm.scorer
    return scorer.tokens_computed, scorer.tokens_minimum, alone[0], scorer.requests_scored, time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--suite", default="paper-table5")
    parser.add_argument("--max_batch_tokens", type=int, default=16384)
    arguments = parser.parse_args()
    columns = load_suite(arguments.suite).columns
    shots = {c.task: c.num_fewshot for c in columns if (arguments.rows / FOLDERS.get(c.task, c.task)).is_dir()}
    missing = [column.task for column in columns if column.task not in shots]
    lm = open_model(arguments.tokenizer, arguments.max_batch_tokens)
    alone, tasks = count_alone(lm), {}
    with tempfile.TemporaryDirectory() as scratch:
        rows = Path(scratch) / "rows"
        rows.mkdir()
        for task in shots:
            (rows / task).symlink_to((arguments.rows / FOLDERS.get(task, task)).resolve())
        for asked in shots:
            work = Path(scratch) / asked
            work.mkdir()
            resolved = TaskResolver(rows, None, work).resolve([asked], shots)
            before = counts(lm, alone)
            for task in load_tasks(resolved, None):
                score_task(lm, task, None)
            after = counts(lm, alone)
            computed, minimum, single, requests, seconds = (b - a for a, b in zip(before, after, strict=True))
            tasks[asked] = {
                "requests": requests,
                "tokens": computed,
                "over_minimum": round(computed / minimum, 3),
                "one_at_a_time": single,
                "saved_factor": round(single / computed, 2),
                "seconds": round(seconds, 1),
            }
            print(asked, tasks[asked], flush=True)
    results = {
        "command": f"python benchmarks/eval_tokens.py --suite {arguments.suite} "
        f"--max_batch_tokens {arguments.max_batch_tokens}",
        "tokenizer": arguments.tokenizer.name,
        "without_rows": missing,
        "cores": os.cpu_count(),
        "tasks": tasks,
        "all": {
            "tokens": sum(task["tokens"] for task in tasks.values()),
            "one_at_a_time": sum(task["one_at_a_time"] for task in tasks.values()),
        },
    }
    (RESULTS / "eval-tokens.json").write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results["all"]))


if __name__ == "__main__":
    main()
