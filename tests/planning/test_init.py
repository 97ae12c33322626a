"""A recipe out of four answers: `inheritune pretrain` takes it, and it fits the card."""

import builtins
import shlex
import sys
from pathlib import Path

import pytest
import yaml
from tiny import make_checkpoint, make_packed

from inheritune_lit.cli import main
from inheritune_lit.parsing import read_recipe
from inheritune_lit.train.args import PretrainArgs


def run_init(tmp_path: Path, arguments: str) -> dict:
    assert main(["init", "--out_file", str(tmp_path / "mine.yaml"), *shlex.split(arguments)]) == 0
    return yaml.safe_load((tmp_path / "mine.yaml").read_text())


def test_the_recipe_plans_a_run(tmp_path, tokenizer_dir, capsys):
    recipe = run_init(tmp_path, "--ref openllama-3b --n 13 --tokens 8B --gpu a6000")
    printed = capsys.readouterr().out
    assert [line.split()[1] for line in printed.splitlines() if line.startswith("  inheritune")] == [
        "slice",
        "prepare",
        "search",
        "slice",
        "pretrain",
        "eval",
    ]
    assert recipe["train"]["global_batch_size"] * recipe["train"]["max_seq_length"] == 131_072
    assert recipe["train"]["max_tokens"] == 8 * 10**9
    make_checkpoint(tmp_path / "start", tokenizer_dir)
    data = make_packed(tmp_path / "data", tokenizer_dir)
    args = ["pretrain", "--config", tmp_path / "mine.yaml", "--initial_checkpoint_dir", tmp_path / "start"]
    args += ["--data", data, "--out_dir", tmp_path / "run", "--train.max_seq_length", 2, "--precision", "32-true"]
    assert main([str(arg) for arg in [*args, "--dry_run"]]) == 0
    assert "61,035 steps" not in capsys.readouterr().err  # shorter samples, so more of them


@pytest.mark.parametrize(
    ("gpu", "n", "recomputes", "optimizer"), [("h100", 13, False, "adamw"), ("rtx4090", 11, True, "adamw8bit")]
)
def test_a_small_card_gets_what_saves_memory(tmp_path, capsys, gpu, n, recomputes, optimizer):
    recipe = run_init(tmp_path, f"--ref openllama-3b --n {n} --tokens 8B --gpu {gpu}")
    assert recipe.get("speed", {}).get("activation_checkpointing", False) is recomputes
    assert recipe["optimizer"]["name"] == optimizer
    micro = recipe["train"]["micro_batch_size"]
    assert 64 % micro == 0
    capsys.readouterr()
    shape = f"plan --recipe {tmp_path / 'mine.yaml'} --gpu {gpu}"
    assert main(shlex.split(shape)) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if line.strip().startswith(gpu))
    assert int(row.split()[3]) >= micro  # as the plan of the recipe itself says


def test_half_the_layers_by_default_and_data_that_is_there(tmp_path, capsys):
    recipe = run_init(tmp_path, "--ref smollm2-135m --tokens 1B --gpu l4 --data data/mine")
    assert recipe["initial_checkpoint_dir"].endswith("SmolLM2-135M-15l")
    assert recipe["data"] == "data/mine"
    assert "inheritune prepare" not in capsys.readouterr().out


def test_all_layers_need_no_search(tmp_path, capsys):
    recipe = run_init(tmp_path, "--ref smollm2-135m --n 30 --tokens 1B --gpu l4 --data data/mine")
    calls = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("  inheritune")]
    assert [call[1] for call in calls] == ["slice", "pretrain", "eval"]
    assert calls[0][-1] == recipe["initial_checkpoint_dir"] == calls[2][2]


def test_asks_on_a_terminal(tmp_path, monkeypatch, capsys):
    answers = iter(["smollm2-135m", "many", "10", "", "l4"])
    asked = []
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    monkeypatch.setattr(builtins, "input", lambda question: (asked.append(question), next(answers))[1])
    recipe = run_init(tmp_path, "")
    assert recipe["initial_checkpoint_dir"].endswith("SmolLM2-135M-10l")
    assert recipe["train"]["max_tokens"] == 8 * 10**9
    assert len(asked) == 5 and "of 30" in asked[1]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ("", "--ref is missing; give it, or run this on a terminal"),
        ("--ref openllama-3b --tokens 8B --gpu tpu", "--gpu tpu is not known"),
        ("--ref openllama-3b --n 30 --tokens 8B --gpu a6000", "more than the reference's 26 layers"),
        ("--ref llama2-7b --n 32 --tokens 8B --gpu l4", "does not fit --gpu l4 even with recomputing"),
        ("--ref openllama-3b --tokens 1000 --gpu a6000", "makes no run of steps of 131,072 tokens"),
        ("--ref openllama-3b --tokens 8B --gpu a6000 --out_file {there}", "is there already"),
        ("--ref openllama-3b --tokens 8B --gpu a6000 --out_file {there}/a.yaml", "cannot write"),
    ],
)
def test_bad_input_is_one_line(arguments, complaint, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.yaml").write_text("mine")
    assert main(["init", *arguments.format(there=tmp_path / "there.yaml").split()]) == 2
    error = capsys.readouterr().err
    assert complaint in error and len(error.splitlines()) == 1
    assert not (tmp_path / "recipes").exists()


def test_asks_again_after_a_typo(tmp_path, monkeypatch, capsys):
    answers = iter(["smollm2-135n", "smollm2-135m", "31", "10", "lots", "1B", "l5", "l4"])
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    monkeypatch.setattr(builtins, "input", lambda question: next(answers))
    recipe = run_init(tmp_path, "")
    assert recipe["initial_checkpoint_dir"].endswith("SmolLM2-135M-10l") and recipe["train"]["max_tokens"] == 10**9
    hints = capsys.readouterr().err
    assert all(hint in hints for hint in ("did you mean smollm2-135m", "30 layers", "lots is not", "--gpu l5 is not"))


@pytest.mark.parametrize("data", ["no", "1e3", "my data/a: b #1", "data/packed", "{x}", "'", "-"])
def test_data_of_any_name_is_read_again(data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["init", "openllama-3b", "--tokens=8B", "--gpu=h100", f"--data={data}", "--out_file=my recipe.yaml"]
    assert main(words) == 0
    assert read_recipe(Path("my recipe.yaml"), PretrainArgs, "pretrain")["data"] == Path(data)
    command = next(line for line in capsys.readouterr().out.splitlines() if "inheritune pretrain" in line)
    assert shlex.split(command) == ["inheritune", "pretrain", "--config", "my recipe.yaml"]
