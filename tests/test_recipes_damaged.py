"""Recipes that are damaged, or whose values are others than meant: one line, exit code 2; names stay names."""

import random
import shlex

import pytest

from inheritune_lit.cli import COMMANDS
from inheritune_lit.data.args import PrepareArgs
from inheritune_lit.errors import UserError
from inheritune_lit.parsing import parse, read_recipe
from inheritune_lit.resources import recipes_dir
from inheritune_lit.train.args import PretrainArgs

KINDS = {name: kind for name, (kind, _) in COMMANDS.items()}
COMMAND_OF = {"data": "prepare", "grow": "grow", "analysis": "ablate"}
ODD_VALUES = (
    "null",
    "[]",
    "{}",
    "{1: 2}",
    "{no: null}",
    "[[1]]",
    "-1",
    "1e400",
    ".nan",
    "'" + "9" * 5000 + "'",
    "9" * 4000,
    "yes",
    "''",
    "'[" + "[" * 3000 + "'",
    "!!binary aGVsbG8=",
    "!!set {a, b}",
    "2026-11-25",
    '"\\0\\e[31m\\n"',
    "~",
    "'{a: '",
    "'- '",
    "&x [*x]",
)


def meant(line: str, **files: str) -> object:
    return parse(shlex.split(line), KINDS)[1]


@pytest.mark.parametrize("name", ["no", "on", "y", "null", "1", "1.5", "1e3", "true", "2026-11-25", "~", "0x10", "<<x"])
def test_domains_keep_their_names(name, tmp_path):
    prepare = "prepare --source a --tokenizer_dir b --out_dir c --max_tokens 4000"
    train = "pretrain --initial_checkpoint_dir a --data b --out_dir c --train.max_steps 2"
    weights = {name: 50.0, "en": 1e-4}
    for text in (f"{{{name}: 50, en: 1e-4}}", f'{{"{name}": 50, "en": 1e-4}}'):
        args = meant(f"{prepare} --mixture {shlex.quote(text)}")
        assert isinstance(args, PrepareArgs) and args.mixture == weights
        args = meant(f"{train} --mixture.weights {shlex.quote(text)}")
        assert isinstance(args, PretrainArgs) and args.mixture.weights == weights
        (tmp_path / "recipe.yaml").write_text(f"mixture:\n  weights: {text}\n")
        args = meant(f"{train} --config {tmp_path}/recipe.yaml")
        assert isinstance(args, PretrainArgs) and args.mixture.weights == weights
        assert read_recipe(tmp_path / "recipe.yaml", PretrainArgs, "pretrain")["mixture"].weights == weights
    args = meant(f"{train} --mixture.weights.{name} 50") if name.isidentifier() else args
    assert isinstance(args, PretrainArgs) and isinstance(args.mixture.weights, dict) and name in args.mixture.weights


def test_a_file_may_be_called_anything():
    args = meant("pretrain --initial_checkpoint_dir no --data 1e3 --out_dir 2026-11-25 --train.max_steps 2")
    assert isinstance(args, PretrainArgs)
    assert [str(path) for path in (args.initial_checkpoint_dir, args.data, args.out_dir)] == ["no", "1e3", "2026-11-25"]


def test_what_comes_with_the_program_is_read():
    for path in recipes_dir().rglob("*.yaml"):
        command = COMMAND_OF.get(path.parent.name, "pretrain")
        assert read_recipe(path, KINDS[command], command), path


def test_damaged_recipes_are_one_line(tmp_path):
    """Values of other types, cut and changed bytes: the arguments or one line, nothing else."""
    draw, refused = random.Random(1), 0
    recipes = [path for path in sorted(recipes_dir().rglob("*.yaml")) if path.parent.name != "data"]
    for _ in range(120):
        path = draw.choice(recipes)
        lines = path.read_text(encoding="utf-8").splitlines()
        place = draw.choice([number for number, line in enumerate(lines) if ": " in line and line[0] != "#"])
        lines[place] = lines[place].partition(":")[0] + ": " + draw.choice(ODD_VALUES)
        content = bytearray("\n".join(lines).encode())
        if draw.random() < 0.5:
            content[draw.randrange(len(content))] = draw.randrange(256)
            content = content[: draw.randrange(len(content))] if draw.random() < 0.3 else content
        recipe = tmp_path / "recipe.yaml"
        recipe.write_bytes(content)
        command = COMMAND_OF.get(path.parent.name, "pretrain")
        try:
            meant(f"{command} --config {recipe}")
        except UserError as error:
            refused += 1
            assert len(str(error).splitlines()) == 1 and str(error).isprintable(), content
            assert len(str(error)) < 2100, content
    assert refused > 20
