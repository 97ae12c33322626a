"""Every recipe for ``grow`` is a command that plans its rounds."""

import re
from pathlib import Path

import pytest
import yaml

from inheritune_lit.cli import main

RECIPES = sorted((Path(__file__).parents[2] / "recipes" / "grow").glob("*.yaml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipe_plans_its_rounds(recipe, reference, packed, tmp_path, capsys):
    args = ["grow", "--config", recipe, "--ref", reference, "--data", packed, "--out_dir", tmp_path / "grown"]
    # For the tiny reference; everything else as the recipe has it.
    args += ["--n", 2, "--grow_by", 1, "--max_layers", 4, "--train.max_seq_length", 2, "--train.lr_warmup_steps", 0]
    assert main([str(arg) for arg in [*args, "--precision", "32-true", "--dry_run"]]) == 0
    told = capsys.readouterr().err
    train = yaml.safe_load(recipe.read_text())["train"]
    tokens = train.get("max_tokens") or train["max_steps"] * train["global_batch_size"] * 2
    assert len(re.findall(rf"round \d: \d layers.* {tokens:,} tokens", told)) == 3
    assert not (tmp_path / "grown").exists()
