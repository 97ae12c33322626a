"""Files that come with the program: suites and recipes, from the repository or from where the wheel puts them."""

import re
import textwrap
from itertools import takewhile
from pathlib import Path

from inheritune_lit.errors import UserError, suggest
from inheritune_lit.io.reading import read_yaml

_PACKAGE = Path(__file__).resolve().parent
_COMMANDS = {"data": "prepare", "grow": "grow", "analysis": "ablate"}
"""The command that the recipes of a folder are for; the others are for ``pretrain``."""


def suites_dir() -> Path:
    """The folder of the suites: ``eval/`` in the repository, ``inheritune_lit/suites`` where installed."""
    return _either("suites", "eval")


def recipes_dir() -> Path:
    """The folder of the recipes: ``recipes/`` in the repository, ``inheritune_lit/recipes`` where installed."""
    return _either("recipes", "recipes")


def find_recipes(args: list[str]) -> list[str]:
    """Put the program's own recipe for ``--config recipes/NAME.yaml`` unless that is there; none is a ``UserError``."""
    found = list(args)
    for position, arg in enumerate(args):
        flag, equals, value = arg.partition("=")
        if flag not in ("--config", "--recipe"):
            continue
        if equals:
            found[position] = f"{flag}={_find(flag, value)}"
        elif position + 1 < len(args):
            found[position + 1] = _find(flag, args[position + 1])
    return found


def recipe_table() -> str:
    """Every recipe: its name as ``--config`` takes it, its command, what it is."""
    recipes = {_name(path): path for path in sorted(recipes_dir().rglob("*.yaml")) if path.is_file()}
    width = max(map(len, recipes))
    return "\n".join(
        f"{name:<{width}}  {_COMMANDS.get(path.parent.name, 'pretrain'):<8}  {_title(path)}"
        for name, path in recipes.items()
    )


def _either(installed: str, repository: str) -> Path:
    folder = _PACKAGE / installed
    return folder if folder.is_dir() else _PACKAGE.parent / repository


def _find(flag: str, name: str) -> str:
    path = Path(name)
    if path.exists():
        read_yaml(path, f"a recipe of {flag}", "give a YAML file of lines such as `seed: 1`")
    elif name.endswith((".yaml", ".yml")):
        if path.parts[0] == "recipes" and (shipped := recipes_dir().joinpath(*path.parts[1:])).is_file():
            return str(shipped)
        known = [_name(each) for each in recipes_dir().rglob("*.yaml")]
        hint = suggest(name, known, "give a YAML file, or one of those that `inheritune recipes` lists")
        raise UserError(f"{flag} {name}: there is no such file; {hint}")
    return name


def _name(path: Path) -> str:
    return str(Path("recipes", path.relative_to(recipes_dir())))


def _title(path: Path) -> str:
    """The first sentence of a recipe's comment."""
    lines = path.read_text(encoding="utf-8").splitlines()
    comment = [line[2:] for line in takewhile(lambda line: line.startswith("# ") and line[2:4] != "  ", lines)]
    return textwrap.shorten(re.split(r"[.;] ", " ".join(comment))[0].rstrip(".:"), 100, placeholder=" ...")
