"""Results on disk: found by the same model only, whole after a kill, ignored where damaged."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from inheritune_lit.errors import UserError
from inheritune_lit.evaluation.open_lm import open_lm

PAIRS = [(f"the model {number} reads", f" text {number % 7}") for number in range(60)]


def requests(pairs: list[tuple]) -> list[SimpleNamespace]:
    return [SimpleNamespace(args=pair) for pair in pairs]


def score(checkpoint: Path, cache_dir: Path | None, pairs=PAIRS, **settings) -> tuple[list[float], int]:
    """Log-likelihoods and greedy flags in one list, and how many requests were computed."""
    lm = open_lm(checkpoint, cache_dir=cache_dir, max_batch_tokens=100, **settings)
    return [float(value) for pair in lm.loglikelihood(requests(pairs)) for value in pair], lm.scorer.requests_scored


def test_a_second_process_scores_what_is_missing(hf_checkpoint, tmp_path):
    expected, _ = score(hf_checkpoint, None)
    first, scored = score(hf_checkpoint, tmp_path, PAIRS[:40])
    assert first == pytest.approx(expected[:80]) and scored == 40
    second, scored = score(hf_checkpoint, tmp_path)
    assert second == pytest.approx(expected) and scored == 20
    assert score(hf_checkpoint, tmp_path) == (second, 0)


def test_whatever_changes_a_score_misses_the_cache(hf_checkpoint, tmp_path):
    cache = tmp_path / "cache"
    score(hf_checkpoint, cache)
    for settings in ({"bos": "model"}, {"dtype": "bfloat16"}, {"quantize": "bnb.int8"}):
        assert score(hf_checkpoint, cache, **settings)[1] == len(PAIRS), settings
    for change in (_other_weight, _other_rope, _other_tokenizer):
        folder = tmp_path / change.__name__
        shutil.copytree(hf_checkpoint, folder)
        change(folder)
        assert score(folder, cache)[1] == len(PAIRS), change.__name__
    shutil.copytree(hf_checkpoint, tmp_path / "same")
    assert score(tmp_path / "same", cache)[1] == 0


def _other_weight(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    state["model.norm.weight"][0] += 1
    save_file(state, folder / "model.safetensors")


def _other_rope(folder: Path) -> None:
    text = (folder / "config.json").read_text()
    assert "10000.0" in text
    (folder / "config.json").write_text(text.replace("10000.0", "500.0"))


def _other_tokenizer(folder: Path) -> None:
    with (folder / "tokenizer.json").open("a") as file:
        file.write("\n")


def test_texts_are_kept_too(hf_checkpoint, tmp_path):
    asked = requests([("the model", {"max_gen_toks": 12, "until": ["x"]}), ("def", {"max_gen_toks": 12})])

    def make(cache: Path | None) -> list[str]:
        is_filled = cache is not None and cache.is_dir()
        lm = open_lm(hf_checkpoint, cache_dir=cache)
        if is_filled:
            lm.model.lm_head.weight.data.zero_()  # what is cached needs no model
        return lm.generate_until(asked)

    expected = make(None)
    assert make(tmp_path / "cache") == expected
    assert make(tmp_path / "cache") == expected


def test_damage_is_passed_over_and_told(hf_checkpoint, tmp_path, caplog):
    expected, _ = score(hf_checkpoint, tmp_path)
    (path,) = tmp_path.iterdir()
    lines = path.read_bytes().split(b"\n")
    lines[3] = lines[3].replace(b"-", b"-9", 1)  # another score, as well-formed as before
    lines[7] = os.urandom(40).replace(b"\n", b" ")
    path.write_bytes(b"\n".join(lines))
    caplog.clear()
    again, scored = score(hf_checkpoint, tmp_path)
    assert scored == 2
    assert again == pytest.approx(expected)
    assert f"2 damaged lines of {path}" in caplog.text


def test_a_file_in_the_folders_place_is_told(hf_checkpoint, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot use the score cache .*file: .*; give another folder"):
        open_lm(hf_checkpoint, cache_dir=tmp_path / "file")


KILLED = """
import os, signal, sys
from pathlib import Path
from types import SimpleNamespace
from inheritune_lit.evaluation import score_cache
from inheritune_lit.evaluation.open_lm import open_lm

add, calls = score_cache.ScoreCache.add, []

def dying(self, results):
    calls.append(1)
    if len(calls) == 3:  # in the middle of a line
        self._file.write(b"0123abcd [")
        self._file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    add(self, results)

score_cache.ScoreCache.add = dying
pairs = [(f"the model {number} reads", f" text {number % 7}") for number in range(60)]
lm = open_lm(Path(sys.argv[1]), cache_dir=Path(sys.argv[2]), max_batch_tokens=100)
lm.loglikelihood([SimpleNamespace(args=pair) for pair in pairs])
"""


def test_a_killed_process_is_continued(hf_checkpoint, tmp_path, capsys):
    done = subprocess.run([sys.executable, "-c", KILLED, str(hf_checkpoint), str(tmp_path)], capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    expected, _ = score(hf_checkpoint, None)
    again, scored = score(hf_checkpoint, tmp_path)
    assert again == pytest.approx(expected)
    assert 0 < scored < len(PAIRS)
    assert score(hf_checkpoint, tmp_path)[1] == 0
    assert torch.tensor(again).isfinite().all()
