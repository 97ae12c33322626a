"""Text that every Python installation carries, as a corpus in RedPajama's layout."""

import json
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from inheritune_lit.errors import UserError

_SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__", "pydoc_data"}
_MIN_CHARACTERS = 500
_MIN_CORPUS_CHARACTERS = 2_000_000


def standard_library_sources() -> Iterator[tuple[str, str]]:
    """Name and text of each source file of the standard library that is no test."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        # Codec tables and the like: long lists of numbers teach a language model nothing.
        if _SKIPPED_FOLDERS.intersection(name.parts[:-1]) or name.parts[0] == "encodings":
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError):
            continue
        if len(text) >= _MIN_CHARACTERS:
            yield name.as_posix(), text


def language_documentation() -> Iterator[tuple[str, str]]:
    """Name and text of each topic of the language reference that ``help()`` shows; nothing where Python lacks them."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        return
    for name, text in sorted(topics.items()):
        if len(text) >= _MIN_CHARACTERS:
            yield name, text


def write_corpus(folder: Path) -> int:
    """Write ``documentation.jsonl`` and ``sources.jsonl``, one document a file of the installation.

    Returns:
        Characters written.

    Raises:
        UserError: this Python carries too little text (a build without the standard library's sources).
    """
    total = 0
    for domain, documents in (("documentation", language_documentation()), ("sources", standard_library_sources())):
        rows = [json.dumps({"text": text, "meta": {"file": name}}) for name, text in documents]
        if rows:
            (folder / f"{domain}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
        total += sum(map(len, rows))
    if total < _MIN_CORPUS_CHARACTERS:
        raise UserError(
            f"this Python's standard library holds only {total:,} characters of text, the demo needs "
            f"{_MIN_CORPUS_CHARACTERS:,}; use a Python with its sources, such as python.org's"
        )
    return total
