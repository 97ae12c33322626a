"""What a benchmark has found so far, in files that are written anew after each piece of news."""

import json
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Row = dict[str, Any]


class Record:
    """Three files in a folder: NAME.json, NAME.txt for reading, and NAME-logs.tar.gz with ``logs`` of other processes.

    Each appears whole, so that what was found is there whenever the benchmark is ended.

    Args:
        text: what NAME.txt is to say, from the record.
        logs: folders whose ``*.txt`` are packed, each under the name of the folder that holds it.
    """

    def __init__(self, folder: Path, name: str, text: Callable[[Row], str], logs: list[Path]) -> None:
        self.found: Row = {"finished": False}
        self._folder, self._name, self._text, self._logs = folder, name, text, logs
        self._began = time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)

    def write(self, **news: Any) -> None:
        """Add to the record and write it."""
        self.found |= news
        self.found["seconds"] = round(time.monotonic() - self._began, 1)
        self._replace(".json", lambda path: path.write_text(json.dumps(self.found, indent=2) + "\n"))
        self._replace(".txt", lambda path: path.write_text(self._text(self.found)))
        self._replace("-logs.tar.gz", self._pack)

    def _replace(self, ending: str, write: Callable[[Path], Any]) -> None:
        path = self._folder / f"{self._name}{ending}"
        aside = path.with_name(f".{path.name}")
        write(aside)
        aside.replace(path)

    def _pack(self, path: Path) -> None:
        with tarfile.open(path, "w:gz") as archive:
            for folder in self._logs:
                for file in sorted(folder.glob("*.txt")):
                    archive.add(file, f"{folder.parent.name}/{file.name}")
