"""Every command that README and docs show is one that the program takes, and every link leads somewhere."""

import re
import shlex
from pathlib import Path

import pytest

from inheritune_lit.cli import COMMANDS, main
from inheritune_lit.errors import UserError
from inheritune_lit.examples import EXAMPLES
from inheritune_lit.parsing import parse as parse_arguments

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))


def commands_in(text: str) -> list[str]:
    """Calls of ``inheritune`` in code, in lines of their own or within a sentence."""
    blocks = re.findall(r"^```[a-z]*\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
    lines += [line.lstrip("# ") for line in text.splitlines() if line.startswith("#   inheritune")]
    found = [re.search(r"(?:\binheritune|-m inheritune_lit) ([a-z]+ .*)", line.partition(" # ")[0]) for line in lines]
    return [match[1] for match in found if match and "..." not in match[1] and "DIR" not in match[1]]


def parse(command: str) -> str:
    """Which command a line calls, with its arguments checked; nothing is run."""
    name, _ = parse_arguments(shlex.split(command, comments=True), {name: kind for name, (kind, _) in COMMANDS.items()})
    return name


@pytest.mark.parametrize("page", [*PAGES, *RECIPES], ids=lambda path: path.name)
def test_commands_are_what_the_program_takes(page, monkeypatch):
    monkeypatch.chdir(ROOT)  # where recipes are found
    for command in commands_in(page.read_text(encoding="utf-8")):
        if "recipes/open_llama_3b-13l.yaml" in command:
            continue  # which `inheritune init` writes
        assert parse(command) == command.split()[0], command


@pytest.mark.parametrize("name", ["inheritune", *COMMANDS])
def test_help_ends_with_examples_that_the_program_takes(name, monkeypatch, capsys):
    words = [] if name == "inheritune" else [name]
    with pytest.raises(SystemExit):
        main([*words, "--help"])
    told = capsys.readouterr().out
    assert "[options]" not in told.partition("options:")[0]
    examples = [line.strip() for line in told.partition("\nexamples:\n")[2].splitlines() if "inheritune " in line]
    assert examples == list(EXAMPLES[name])
    monkeypatch.chdir(ROOT)
    for example in examples:
        assert parse(example.partition(" ")[2]) == example.split()[1]


def test_a_wrong_command_is_noticed(monkeypatch):
    monkeypatch.chdir(ROOT)
    text = "`inheritune slice --ref a --lairs 3`\n```bash\ninheritune pretrain --config recipes/none.yaml\n```\n"
    assert len(commands_in(text)) == 2
    for command in commands_in(text):
        with pytest.raises(UserError):
            parse(command)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def test_every_command_is_in_the_readme():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [name for name in COMMANDS if f"inheritune {name}" not in text and name != "demo"] == []
