"""A folder of results, one file per model and task as it finishes: a stopped evaluation continues from there."""

import json
import os
from pathlib import Path
from typing import Any

from inheritune_lit.errors import UserError
from inheritune_lit.io.folders import check_vacant, new_folder, replace_text
from inheritune_lit.io.manifest import MANIFEST, read_manifest, replace_manifest, write_manifest

_GROWS = ("checkpoints", "columns")


class ResultFolder:
    """``out_dir/<checkpoint>/<task>.json`` beside ``results.json``, ``results.md`` and ``results.csv``.

    Args:
        out_dir: a new folder, or one of an evaluation with the same settings; checkpoints and columns may be more.
        settings: what all its files have in common.

    Raises:
        UserError: the folder holds something else.
    """

    def __init__(self, out_dir: Path, settings: dict[str, Any]) -> None:
        self._out_dir, self._settings = out_dir, settings
        manifest = read_manifest(out_dir) if out_dir.is_dir() else None
        if manifest is None or manifest.get("kind") != "evaluation":
            check_vacant(out_dir)
            return
        before = manifest.get("settings", {})
        for key, value in settings.items():
            old = before.get(key)
            if key in _GROWS:
                if lost := [entry for entry in old or [] if entry not in value]:
                    raise UserError(
                        f"{out_dir} has results of {key} {lost[0]!r} too; name it, or give another --out_dir"
                    )
            elif old != value:
                raise UserError(f"{out_dir} was made with {key} {old!r}, not {value!r}; give another --out_dir")

    def tasks(self, checkpoint: str) -> list[str]:
        """Names of what is finished."""
        return [path.stem for path in sorted(self._folder(checkpoint).glob("*.json"))]

    def read(self, checkpoint: str, task: str, identity: dict[str, Any]) -> dict[str, Any] | None:
        """The finished record of a task, or None.

        Raises:
            UserError: it was made with another model, other settings or other rows.
        """
        path = self._folder(checkpoint) / f"{task}.json"
        if not path.is_file():
            return None
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            before = record["identity"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path} is damaged ({error!r}); remove it, the same command then scores it again"
            ) from error
        for key, value in identity.items():
            if before.get(key) != value:
                raise UserError(
                    f"{path} was made with {_short(key, before.get(key))}, now it is {_short(key, value)}; "
                    "give another --out_dir"
                )
        return record

    def write(self, checkpoint: str, task: str, record: dict[str, Any], samples: str | None = None) -> None:
        """Keep a finished record; the samples are there before it."""
        self._open()
        folder = self._folder(checkpoint)
        folder.mkdir(exist_ok=True)
        if samples is not None:
            replace_text(folder / f"{task}.samples.jsonl", samples)
        replace_text(folder / f"{task}.json", _compact(record))

    def write_summary(self, results: dict[str, Any], markdown: str, table: str) -> None:
        """Write the three files that sum up."""
        self._open()
        replace_text(self._out_dir / "results.json", json.dumps(results, indent=2, ensure_ascii=False) + "\n")
        replace_text(self._out_dir / "results.csv", table)
        replace_text(self._out_dir / "results.md", markdown)

    def _open(self) -> None:
        """Make the folder, or note in its manifest what has been added."""
        if not (self._out_dir / MANIFEST).is_file():
            with new_folder(self._out_dir) as staging:
                write_manifest(staging, "evaluation", {"settings": self._settings})
            return
        manifest = read_manifest(self._out_dir)
        if manifest and manifest["settings"] != self._settings:
            replace_manifest(self._out_dir, {**manifest, "settings": self._settings})

    def _folder(self, checkpoint: str) -> Path:
        return self._out_dir / checkpoint.replace(os.sep, "_")


def _compact(record: dict[str, Any]) -> str:
    """JSON with a line a field: the lists of rows would otherwise take a line an entry."""
    lines = [f"  {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in record.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _short(key: str, value: Any) -> str:
    text = f"{value[:12]}..." if isinstance(value, str) and key.endswith("sha256") else repr(value)
    return f"{key} {text}"
