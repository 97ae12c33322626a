"""The paper's full-size recipes: their commands run on small models, and their stated costs are budget.py's."""

import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from inheritune_lit import references
from inheritune_lit.checkpoint.config import load_lit_config
from inheritune_lit.cli import main
from inheritune_lit.inherit.plan import half_width_config
from inheritune_lit.inherit.reference import describe_shape
from inheritune_lit.model.flops import flops_per_token
from inheritune_lit.references import SHAPES, Shape, find_shape
from inheritune_lit.train.gpus import find_gpus

PAPER = Path(__file__).parents[2] / "recipes" / "paper"
RECIPES = sorted(PAPER.glob("*.yaml"))
COST = re.compile(
    r"#   n=(\d+)( half width)?( with teacher)?: ([\d,]+) parameters, ([\d.]+) GFLOP per token; "
    r"A6000 (\d+), A100 (\d+), H100 (\d+)"
)


def shape_of(recipe: Path) -> Shape:
    """The shape behind a recipe's name: the longest one that it ends with."""
    names = [shape.name for shape in SHAPES if recipe.stem.endswith(shape.name.removeprefix("paper-"))]
    return find_shape(max(names, key=len))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_stated_cost(recipe):
    train = yaml.safe_load(recipe.read_text())["train"]
    tokens = train["global_batch_size"] * train["max_seq_length"] * train["max_steps"]
    config = describe_shape(shape_of(recipe), PAPER).config
    stated = COST.findall(recipe.read_text())
    assert len(stated) >= 2
    for n, half, teacher, parameters, gflops, *hours in stated:
        student = replace(config, n_layer=int(n))
        student = half_width_config(student) if half else student
        width = student.n_embd
        assert int(parameters.replace(",", "")) == int(n) * (12 * width**2 + 2 * width) + (50304 + 1025) * width
        flops = flops_per_token(student, 1024) + (flops_per_token(config, 1024) / 3 if teacher else 0)
        assert float(gflops) == pytest.approx(flops / 1e9, abs=0.006)
        for card, stated_hours in zip(("a6000", "a100-80gb", "h100"), hours, strict=True):
            half = find_gpus(card)[0].peak_flops / 2
            assert int(stated_hours) == pytest.approx(flops * tokens / half / 3600, abs=0.6)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_settings_are_appendix_c1s(recipe):
    whole = yaml.safe_load(recipe.read_text())
    train, optimizer = whole["train"], whole["optimizer"]
    size = shape_of(recipe).name.removesuffix("-32l").rpartition("-")[2]
    batch, lr, min_lr = {"medium": (48, 3e-4, 3e-5), "large": (16, 2e-4, 1e-5), "xlarge": (16, 1.5e-4, 1e-5)}[size]
    assert (train["global_batch_size"], optimizer["lr"], train["min_lr"]) == (batch, lr, min_lr)
    assert (train["lr_warmup_steps"], optimizer["weight_decay"], train["max_norm"]) == (2000, 0.1, 1.0)
    assert train["max_steps"] == (50_000 if "distill" in whole else 100_000)
    if "distill" in whole:
        assert (whole["distill"]["alpha"], whole["distill"]["temperature"]) == (0.6, 1.0)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipe_plans_a_run(recipe, checkpoint, packed, tmp_path, capsys):
    flags = {
        "config": recipe,
        "initial_checkpoint_dir": checkpoint,
        "data": packed,
        "out_dir": tmp_path / "run",
        "train.max_seq_length": 2,
        "precision": "32-true",
    }
    if "distill" in recipe.stem:
        flags["distill.teacher"] = checkpoint
    args = [str(part) for name, value in flags.items() for part in (f"--{name}", value)]
    assert main(["pretrain", *args, "--dry_run"]) == 0
    text = capsys.readouterr().err
    whole = yaml.safe_load(recipe.read_text())
    assert f"{whole['train']['max_steps']:,} steps" in text
    assert ("learns from" in text) == ("distill" in whole)


@pytest.fixture
def small_shapes(monkeypatch, tmp_path):
    """The shapes with their depths and a width of 32 or, where heads are odd, of 40."""
    small = tuple(Shape(s.name, s.layers, *((40, 5) if s.heads % 2 else (32, 4))) for s in SHAPES)
    monkeypatch.setattr(references, "SHAPES", small)
    monkeypatch.setattr("inheritune_lit.inherit.reference.VOCABULARY", 448)
    monkeypatch.chdir(tmp_path)


def run_commands(path: Path, tokenizer_dir: Path, capsys) -> list[str]:
    """Run a file's commands: slices as they are, pretrain as far as its plan; names of what was sliced."""
    lines = [line.lstrip("# ").rstrip() for line in path.read_text().splitlines()]
    made = []
    for line in lines:
        words = (
            shlex.split(line)[1:]
            if line.startswith(("inheritune slice", "inheritune pretrain --config recipes"))
            else []
        )
        if words[:1] == ["slice"]:
            ref = words[1]
            if ref.startswith("paper-"):
                words += ["--tokenizer_dir", str(tokenizer_dir)]
            elif not Path(ref).exists():
                # What a run of 100K steps would have left.
                trained = Path(str(Path(ref).parent).replace("runs/", "checkpoints/"))
                assert trained.is_dir(), f"{line}: nothing before it makes {ref}"
                shutil.copytree(trained, ref)
            assert main(words) == 0, capsys.readouterr().err
            made.append(words[words.index("--out_dir") + 1])
        elif words:
            recipe = yaml.safe_load((PAPER.parents[1] / words[2]).read_text())
            n = words[words.index("--n") + 1] if "--n" in words else None
            start = (
                recipe["initial_checkpoint_dir"].replace("{n}", n)
                if n
                else words[words.index("--initial_checkpoint_dir") + 1]
            )
            assert Path(start).is_dir(), f"{line}: nothing before it makes {start}"
    return made


@pytest.mark.parametrize("recipe", [path for path in RECIPES if "distill" not in path.stem], ids=lambda path: path.stem)
def test_commands_of_a_recipe(recipe, small_shapes, tokenizer_dir, capsys):
    made = run_commands(recipe, tokenizer_dir, capsys)
    assert len(made) >= 2


def test_commands_of_the_baselines(small_shapes, tokenizer_dir, capsys):
    run_commands(PAPER / "table1-gpt2-medium.yaml", tokenizer_dir, capsys)
    made = run_commands(PAPER / "figure3-distillation-gpt2-medium.yaml", tokenizer_dir, capsys)
    made += run_commands(PAPER / "README.md", tokenizer_dir, capsys)
    assert len(made) == 16
    for folder in made:
        depth = re.search(r"-(\d+)l$", folder)
        assert load_lit_config(Path(folder)).n_layer == (int(depth[1]) if depth else 24)
