"""The structure of the package: who may import whom, where printing is, how large it is."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import inheritune_lit

PACKAGE = Path(inheritune_lit.__file__).parent
ROOMS = {
    "io": set(),
    "checkpoint": {"io"},
    "model": {"io", "checkpoint"},
    "inherit": {"io", "checkpoint", "model"},
    "data": {"io", "checkpoint"},
    "evaluation": {"io", "checkpoint", "model", "inherit", "data"},
    "train": {"io", "checkpoint", "model", "inherit", "data", "evaluation"},
    "analysis": {"io", "checkpoint", "model", "inherit", "data", "evaluation"},
}
"""Inner rooms, and the rooms that each may import."""
OUTER = {"planning", "studies", "report"}
EVERYONES = {"errors", "references", "resources", "tokenizer", "tokenizer_files"}
"""Small modules beside the rooms."""
FILES = sorted(path for path in PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[tuple[str, str]]:
    """Module and name of everything of the package that a file imports, at any depth, also as ``lit.name``."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "inheritune_lit":
            yield from ((node.module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            package |= {alias.asname or alias.name for alias in node.names if alias.name == "inheritune_lit"}
            yield from ((alias.name, "") for alias in node.names if alias.name.startswith("inheritune_lit."))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in package:
            yield "inheritune_lit", node.attr


def other_room(module: str, name: str) -> str:
    return module.split(".")[1] if "." in module else name


def test_every_room_is_known():
    rooms = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()}
    assert rooms == {*ROOMS, *OUTER}


@pytest.mark.parametrize("path", [path for path in FILES if room_of(path) in ROOMS], ids=lambda path: path.name)
def test_no_arrow_of_an_inner_room_runs_up(path):
    room = room_of(path)
    allowed = {room, *ROOMS[room], *(EVERYONES if room != "io" else {"errors"})}
    assert {other_room(*found) for found in imports(path)} <= allowed


@pytest.mark.parametrize("path", [path for path in FILES if room_of(path) in EVERYONES], ids=lambda path: path.name)
def test_small_modules_import_each_other_and_io(path):
    assert {other_room(*found) for found in imports(path)} <= {*EVERYONES, "io"}


@pytest.mark.parametrize("path", [path for path in FILES if room_of(path) in OUTER], ids=lambda path: path.name)
def test_outer_rooms_import_what_the_package_exports(path):
    room = room_of(path)
    for module, name in imports(path):
        if module == "inheritune_lit":
            assert name in inheritune_lit.__all__, name
        else:
            assert other_room(module, name) in {room, "io", *EVERYONES}, module


def test_only_the_command_line_prints():
    for path in FILES:
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        prints = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]
        # Progress writes its lines to the stream that it is given.
        assert not prints or room_of(path) == "cli", path


def test_arguments_need_nothing_heavy():
    heavy = {"torch", "numpy", "litgpt", "lightning", "transformers", "lm_eval", "matplotlib", "scipy"}
    for path in PACKAGE.rglob("args.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not heavy & {name.split(".")[0] for name in names}, path


def test_files_hold_one_subject():
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert max(lengths.values()) <= 400, max(lengths, key=lengths.get)
    written = [length for length in lengths.values() if length]
    assert sum(written) < 20_000 and len(lengths) < 150, "a feature pays for its lines by what it replaces"
    assert sum(written) / len(written) > 110
