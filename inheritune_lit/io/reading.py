"""Small files that others wrote: text, JSON and YAML, read with bounds, and refused in one line."""

import json
import os
import re
import stat
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

from inheritune_lit.errors import UserError, first_line

_MAX_JSON_BYTES, _MAX_YAML_BYTES = 256 << 20, 1 << 20  # the largest tokenizer.json has 35 MB; 1 MB of YAML takes 10 s
_MAX_NODES = 200_000  # values of a YAML file, aliases written out, so that a few lines cannot stand for billions
AGAIN = "restore it, or make it again"


def open_regular(path: Path) -> BinaryIO:
    """Open a file to read; one that blocks or never ends, or is a Git LFS pointer, is refused."""
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    problem = "" if stat.S_ISREG(os.fstat(file.fileno()).st_mode) else "is not a regular file; give a file"
    if not problem and file.peek().startswith(b"version https://git-lfs.github.com/spec/"):
        problem = "is a Git LFS pointer, not the file; run `git lfs pull` in its repository"
    if problem:
        file.close()
        raise UserError(f"{path} {problem}")
    return file


def read_text(path: Path, what: str = "text", remedy: str = AGAIN, max_bytes: int = 64 << 20) -> str:
    """Read UTF-8 text; a file missing, too large, irregular or no text is a ``UserError`` of ``what`` and a remedy."""
    try:
        with open_regular(path) as file:
            content = file.read(max_bytes + 1)
        if len(content) <= max_bytes:
            return content.decode("utf-8-sig")
        problem: object = f"it has more than {max_bytes:,} bytes"
    except OSError as error:
        problem = error.strerror
    except UnicodeDecodeError as error:
        problem = error
    raise UserError(f"{path} can't be read as {what} ({problem}); {remedy}")


def read_json(path: Path, what: str = "JSON", remedy: str = AGAIN) -> dict[str, Any]:
    """Read a JSON object; arguments and errors as those of ``read_text``, and damaged or other JSON is refused."""
    return _mapping(parse_json(read_text(path, what, remedy, _MAX_JSON_BYTES), path, what, remedy), path, what, remedy)


def parse_json(text: str | bytes, path: Path, what: str = "JSON", remedy: str = AGAIN) -> Any:
    """Parse any JSON of ``path``; none, nested too deep, or numbers of thousands of digits are a ``UserError``."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} can't be read as {what} ({_problem(error)}); {remedy}") from error


def read_yaml(path: Path, what: str = "YAML", remedy: str = AGAIN) -> dict[str, Any]:
    """Read a YAML mapping of plain values (``no`` is a name); Python objects and endless aliases are refused."""
    return _mapping(parse_yaml(read_text(path, what, remedy, _MAX_YAML_BYTES), path, what, remedy), path, what, remedy)


def parse_yaml(text: str, path: Path, what: str = "YAML", remedy: str = AGAIN) -> Any:
    """Parse YAML of any type as ``read_yaml`` does; ``path`` is where it comes from."""
    import yaml

    try:
        node = yaml.compose(text, _plain_loader())
        if node is not None and _check_node(node, {}) > _MAX_NODES:
            raise ValueError("its aliases stand for too many values")
        return None if node is None else _plain_loader()("").construct_document(node)
    except (yaml.YAMLError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise UserError(f"{path} can't be read as {what} ({_problem(error)}); {remedy}") from error


@cache
def _plain_loader() -> Any:
    """PyYAML's safe loader, with numbers such as 1e-4 as YAML 1.2 and JSON have them, and no dates."""
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    Loader.yaml_implicit_resolvers = {
        first: [(tag, rule) for tag, rule in rules if not tag.endswith(":timestamp")]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    exponent = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", exponent, list("-+.0123456789"))
    return Loader


def _problem(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deep"
    mark, problem = (getattr(error, f"problem{part}", None) for part in ("_mark", ""))
    return f"line {mark.line + 1}: {problem}" if mark and problem else first_line(error)


def _mapping(content: Any, path: Path, what: str, remedy: str) -> dict[str, Any]:
    if isinstance(content, dict) and all(isinstance(key, str) for key in content):
        return content
    kind = "names that are not text" if isinstance(content, dict) else f"a {type(content).__name__}"
    raise UserError(f"{path} can't be read as {what} (it holds {kind}, not names and values); {remedy}")


def _check_node(node: Any, known: dict[int, int]) -> int:
    """How many values a node stands for, aliases written out; of one that holds itself, too many.

    A name that stands in a mapping twice is refused, of which YAML keeps the last. Names stay text: YAML 1.1 would make
    False of a domain that is called "no".
    """
    if id(node) not in known:
        known[id(node)] = _MAX_NODES + 1
        children = node.value if isinstance(node.value, list) else []
        pairs = [child for child in children if isinstance(child, tuple)]
        names = [name for name, _ in pairs if isinstance(name.value, str) and not name.tag.endswith(":merge")]
        for name in names:
            name.tag = "tag:yaml.org,2002:str"
        if twice := next((name for name, count in Counter(name.value for name in names).items() if count > 1), None):
            raise ValueError(f"{twice!r} stands in it twice")
        parts = [part for pair in pairs for part in pair] or children
        known[id(node)] = 1 + sum(_check_node(part, known) for part in parts)
    return known[id(node)]
