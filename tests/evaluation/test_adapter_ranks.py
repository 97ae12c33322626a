"""Two processes share the work and both get the results of one."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

from inheritune_lit.evaluation.open_lm import open_lm

SHARED = """
import json, sys
from pathlib import Path
from types import SimpleNamespace
from lightning.fabric import Fabric
from inheritune_lit.evaluation.open_lm import open_lm
from inheritune_lit.evaluation.score_cache import Ranks

checkpoint, out, cache, asked = (*map(Path, sys.argv[1:4]), json.loads(sys.argv[4]))

def main(fabric):
    add_up = lambda tensor: fabric.all_reduce(tensor, reduce_op="sum")
    ranks = Ranks(fabric.global_rank, fabric.world_size, add_up)
    for attempt in ("fresh", "from the cache"):
        lm = open_lm(checkpoint, max_batch_tokens=70, cache_dir=cache, ranks=ranks)
        own = []
        forward = lm.model.transformer.wte.forward
        lm.model.transformer.wte.forward = lambda ids: (own.append(ids.numel()), forward(ids))[1]
        scores = lm.loglikelihood([SimpleNamespace(args=pair) for pair in asked["pairs"]])
        texts = lm.generate_until([SimpleNamespace(args=(prompt, asked["settings"])) for prompt in asked["prompts"]])
        rolled = lm.loglikelihood_rolling([SimpleNamespace(args=(prompt,)) for prompt in asked["prompts"]])
        result = {"scores": scores, "texts": texts, "rolled": rolled, "own": sum(own), "all": lm.scorer.tokens_computed}
        (out / f"{attempt} {fabric.global_rank}.json").write_text(json.dumps(result))
        fabric.barrier()

if __name__ == "__main__":
    Fabric(accelerator="cpu", devices=2, strategy="ddp").launch(main)
"""


def test_two_processes_score_as_one(hf_checkpoint, tmp_path):
    asked = {
        "pairs": [(f"the model {n % 5} reads" * (1 + n % 3), f" text {n}") for n in range(31)],
        "prompts": ["the model", "def", "a text of", "import"],
        "settings": {"max_gen_toks": 10, "until": []},
    }
    lm = open_lm(hf_checkpoint, max_batch_tokens=70)
    expected = lm.loglikelihood([SimpleNamespace(args=pair) for pair in asked["pairs"]])
    texts = lm.generate_until([SimpleNamespace(args=(p, asked["settings"])) for p in asked["prompts"]])
    rolled = lm.loglikelihood_rolling([SimpleNamespace(args=(p,)) for p in asked["prompts"]])
    script = tmp_path / "shared.py"
    script.write_text(SHARED)
    command = [
        sys.executable,
        str(script),
        str(hf_checkpoint),
        str(tmp_path),
        str(tmp_path / "cache"),
        json.dumps(asked),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for attempt in ("fresh", "from the cache"):
        ranks = [json.loads((tmp_path / f"{attempt} {rank}.json").read_text()) for rank in range(2)]
        for rank in ranks:
            assert [loglikelihood for loglikelihood, _ in rank["scores"]] == pytest.approx([x for x, _ in expected])
            assert [greedy for _, greedy in rank["scores"]] == [greedy for _, greedy in expected]
            assert rank["texts"] == texts
            assert rank["rolled"] == pytest.approx(rolled, abs=1e-4)
        if attempt == "fresh":
            assert ranks[0]["all"] == ranks[1]["all"] == lm.scorer.tokens_computed
            assert min(rank["own"] for rank in ranks) > 0.3 * max(rank["own"] for rank in ranks)
        else:
            assert [rank["own"] for rank in ranks] == [0, 0]
