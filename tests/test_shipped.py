"""Recipes that come with the program are found from any folder; the user's own go first."""

from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from inheritune_lit.cli import COMMANDS, main
from inheritune_lit.errors import UserError
from inheritune_lit.resources import find_recipes, recipe_table, recipes_dir

NAME = "recipes/paper-openllama-3b-13l-1b.yaml"


@pytest.mark.parametrize("words", [["--config", NAME], [f"--config={NAME}"], ["--recipe", NAME]])
def test_recipe_is_found_from_another_folder(tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    *_, last = find_recipes(["pretrain", *words])
    path = Path(last.rpartition("=")[2])
    assert path.is_absolute() and "1B tokens" in path.read_text()


def test_own_file_goes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").mkdir()
    (tmp_path / NAME).write_text("out_dir: mine\n")
    assert find_recipes(["pretrain", "--config", NAME]) == ["pretrain", "--config", NAME]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("recipes/paper-openllama-3b-13l-2b.yaml", f"did you mean {NAME}?"),
        ("mine.yaml", "give a YAML file, or one of those that `inheritune recipes` lists"),
    ],
)
def test_missing_recipe_is_one_line(tmp_path, monkeypatch, capsys, name, hint):
    monkeypatch.chdir(tmp_path)
    assert main(["pretrain", "--config", name]) == 2
    assert capsys.readouterr().err == f"inheritune: error: --config {name}: there is no such file; {hint}\n"


def test_a_recipe_that_is_no_text_is_one_line(tmp_path, capsys):
    (tmp_path / "recipe.yaml").write_bytes(b"\xff\xfe\x00")
    assert main(["pretrain", "--config", str(tmp_path / "recipe.yaml")]) == 2
    error = capsys.readouterr().err
    assert "can't be read as a recipe of --config (" in error and error.count("\n") == 1


def test_a_flag_without_a_value_is_the_parsers(tmp_path):
    assert find_recipes(["pretrain", "--config"]) == ["pretrain", "--config"]


def test_paths_outside_the_recipes_are_not_reached(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no such file"):
        find_recipes(["pretrain", "--config", "other/paper-openllama-3b-13l-1b.yaml"])


def test_table_names_the_command_that_takes_each(monkeypatch):
    rows = [line.split(maxsplit=2) for line in recipe_table().splitlines()]
    assert len(rows) == len(list(recipes_dir().rglob("*.yaml")))
    for name, command, title in rows:
        recipe = recipes_dir().joinpath(*Path(name).parts[1:]).read_text()
        assert f"inheritune {command} " in " ".join(recipe.split()), name
        assert set(yaml.safe_load(recipe)) & set(_flags(command)), name
        assert len(title) > 20


def _flags(command: str) -> list[str]:
    return [field.name for field in fields(COMMANDS[command][0])]
