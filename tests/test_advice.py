"""What messages and documents advise is there: every command and flag that they name is taken by the real parser."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from inheritune_lit.cli import COMMANDS
from inheritune_lit.errors import UserError
from inheritune_lit.io.arguments import flags_of
from inheritune_lit.parsing import parse

ROOT = Path(__file__).parents[1]
TEXTS = [ROOT / "inheritune_lit" / name for name in ("examples.txt", "parsing.csv")]
KINDS = {name: kind for name, (kind, _) in COMMANDS.items()}
FLAGS = {name: {*flags_of(kind), *kind.aliases, "config", "recipe", "help"} for name, kind in KINDS.items()}
GROUPS = {flag.partition(".")[0] for flags in FLAGS.values() for flag in flags if "." in flag}
OTHERS = {"version", "flag", "many", "print_shtab"}  # of the program itself, and of explanations
OTHERS |= {"distill.kind", "distill.cosine"}  # of an earlier version, which have other names
OTHERS |= {"wheels", "small", "budget"}  # of the benchmarks for a new GPU
OTHERS |= {"long", "signal", "resume", "optimizer.betas", "out"}  # of zstd, SLURM, litgpt; "out" shows an abbreviation


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """The string constants of a module, docstrings included; what is filled in later reads X."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = (part.value if isinstance(part, ast.Constant) else "X" for part in node.values)
            yield node.lineno, "".join(map(str, parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
            yield node.lineno, node.value


def commands(text: str) -> list[str]:
    """Commands in a text: between backticks, or a line of their own."""
    found = re.findall(r"`+inheritune ([^`]+)`", text)
    return found + re.findall(r"^\s*(?:\$ |#   )?inheritune ([a-z]+ .*?)(?: +#.*)?$", text, flags=re.MULTILINE)


def wrong_with(line: str) -> str | None:
    """What is wrong with a command of the program; its values may be placeholders, and more may follow "..."."""
    words = re.sub("""['"\\\\]""", "", line.partition(" ...")[0]).split()
    if words[0] not in KINDS:
        return None if words[0].startswith(("--", "X", "COMMAND")) else f"no command {words[0]}"
    for word in words:
        name = word.removeprefix("--").partition("=")[0].replace("-", "_")
        if word.startswith("--") and name != "X" and name not in FLAGS[words[0]]:
            return f"no flag {word}"
    placeholders = re.search(r"[A-Z]{2}|X|[{<\[|]|--help|\.\.\.|\\$", line)
    if placeholders or " --" not in f" {' '.join(words[1:])}":
        return None
    try:
        parse(words, KINDS)
    except UserError as error:
        partial = ("is missing", "needs a value", "no such file", "give ")  # a sentence names a flag, not its value
        return None if any(words in str(error) for words in partial) else str(error)
    return None


MODULES = sorted((ROOT / "inheritune_lit").rglob("*.py"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))


def test_commands_in_messages_are_commands():
    found = [(path, line, each) for path in MODULES for line, text in texts(path) for each in commands(text)]
    found += [(path, 0, each) for path in TEXTS for each in commands(path.read_text(encoding="utf-8"))]
    assert len(found) > 100
    wrong = [f"{path.name}:{line}: {each}: {why}" for path, line, each in found if (why := wrong_with(each))]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", [*PAGES, *RECIPES], ids=lambda path: path.stem)
def test_commands_in_documents_are_commands(path):
    found = commands(path.read_text(encoding="utf-8"))
    wrong = [f"{each}: {why}" for each in found if (why := wrong_with(each))]
    assert not wrong, "\n".join(wrong)


def test_flags_in_messages_are_flags():
    known, wrong = set().union(*FLAGS.values()) | GROUPS | OTHERS, []
    for path in [*MODULES, *TEXTS]:
        for line, text in texts(path) if path.suffix == ".py" else [(0, path.read_text(encoding="utf-8"))]:
            for name in re.findall(r"(?<![\w-])--([a-z][\w.]*(?:-[\w.]+)*)", text):
                plain = re.sub(r"\.?X$|\.$", "", name).replace("-", "_")
                if plain not in known and not any(flag.startswith(f"{plain}.") for flag in known):
                    wrong.append(f"{path.relative_to(ROOT)}:{line}: --{name}")
    assert not wrong, "\n".join(wrong)


def test_flags_in_documents_are_flags():
    known, wrong = set().union(*FLAGS.values()) | GROUPS | OTHERS, []
    for path in PAGES:
        for name in re.findall(r"`--([a-z][\w.]*)", path.read_text(encoding="utf-8")):
            if name.rstrip(".") not in known:
                wrong.append(f"{path.name}: --{name}")
    assert not wrong, "\n".join(wrong)
