"""Task rows from files: read from a folder, checked, and given to lm-eval's tasks."""

import hashlib
import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inheritune_lit.errors import UserError, first_line
from inheritune_lit.evaluation import paper_tasks as logiqa
from inheritune_lit.evaluation import paper_tasks as mmlu
from inheritune_lit.io.manifest import sha256_file

# "validation.jsonl" and, as the hub names them, "validation-00000-of-00002.parquet".
_FILE = re.compile(r"(?P<split>[\w.]+?)(-\d{5}-of-\d{5})?\.(?P<kind>jsonl|parquet)")
_BUILDERS = {"jsonl": "json", "parquet": "parquet"}
# The two tasks score the same rows.
_SHARED = {"truthfulqa_mc1": "truthfulqa_mc", "truthfulqa_mc2": "truthfulqa_mc"}


@dataclass(frozen=True)
class LocalRows:
    """Files of each split, all in one format; ``builder`` is the data library's name of it."""

    folder: Path
    builder: str
    splits: dict[str, list[Path]]

    def sha256(self, splits: list[str]) -> str:
        """One hash over the files of some splits."""
        files = [path for split in splits for path in self.splits[split]]
        return hashlib.sha256("".join(map(sha256_file, files)).encode()).hexdigest()


def find_rows(data_dir: Path, task: str, dataset_path: str | None, dataset_name: str | None) -> LocalRows:
    """The rows of a task: ``data_dir/<task>/<split>.jsonl``, or a copy of the hub's folder of its data set.

    Raises:
        UserError: no folder, no files in it, or files of two formats.
    """
    folders = [data_dir / task]
    if task in _SHARED:
        folders.append(data_dir / _SHARED[task])
    if dataset_path:
        folders += [data_dir / dataset_path, data_dir / dataset_path.split("/")[-1]]
    present = [folder for folder in folders if folder.is_dir()]
    if not present:
        raise UserError(
            f"no local rows of task {task!r}: {folders[0]} is missing; put <split>.jsonl or .parquet files there, or "
            "mirror them with --fetch_data"
        )
    for folder in present:
        for base in (folder / dataset_name if dataset_name else folder, folder, folder / "data"):
            if found := _files(base):
                return _local_rows(base, found)
    raise UserError(f"no local rows of task {task!r}: {present[0]} has no <split>.jsonl or <split>.parquet file")


def _files(base: Path) -> list[tuple[str, str, Path]]:
    """(split, kind, file) of a folder, also where a split is a folder of its own as in the hub's parquet copies."""
    if not base.is_dir():
        return []
    found = []
    for path in sorted(base.iterdir()):
        if path.is_file() and (match := _FILE.fullmatch(path.name)):
            found.append((match["split"], match["kind"], path))
        elif path.is_dir():
            found += [(path.name, "parquet", part) for part in sorted(path.glob("[0-9][0-9][0-9][0-9].parquet"))]
    return found


def _local_rows(base: Path, found: list[tuple[str, str, Path]]) -> LocalRows:
    kinds = {kind for _, kind, _ in found}
    if len(kinds) > 1:
        raise UserError(f"{base} holds both .jsonl and .parquet rows; keep one of them")
    splits: dict[str, list[Path]] = {}
    for split, _, path in found:
        splits.setdefault(split, []).append(path)
    return LocalRows(base, _BUILDERS[kinds.pop()], splits)


def read_rows(paths: list[Path]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where it stands, row) of each row.

    Raises:
        UserError: a file is damaged or holds something else than rows.
    """
    for path in paths:
        if path.suffix == ".parquet":
            yield from _read_parquet(path)
            continue
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise UserError(f"{path}:{number} is not JSON ({error}); fix or remove the line") from error
                if not isinstance(row, dict):
                    raise UserError(f"{path}:{number} holds a {type(row).__name__}, not a row; fix or remove the line")
                yield f"{path}:{number}", row


def _read_parquet(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise UserError(f"{path} is not a parquet file ({first_line(error)}); copy it again") from error
    for number, row in enumerate(rows, start=1):
        yield f"{path} row {number}", row


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows as jsonl."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


Rows = list[dict[str, Any]]


class LocalTaskRows:
    """Finds tasks' rows in a folder; those of LogiQA and of MMLU are rewritten where they have another shape.

    Args:
        data_dir: see ``rows.find_rows``.
        scratch: an existing folder for rows that are rewritten.
        subjects: MMLU's.
    """

    def __init__(self, data_dir: Path, scratch: Path, subjects: Collection[str]) -> None:
        self._data_dir, self._scratch, self._known = data_dir, scratch, subjects
        self._mmlu: dict[str, dict[str, Rows]] = {}

    def of_task(self, name: str, config: dict[str, Any]) -> LocalRows:
        """Rows of a task that is not a subject of MMLU.

        Args:
            config: lm-eval's description of it.

        Raises:
            UserError: there are none, or they are damaged.
        """
        if name != "logiqa":
            return find_rows(self._data_dir, name, config.get("dataset_path"), config.get("dataset_name"))
        original = {
            split: self._data_dir / name / file
            for split, file in logiqa.SPLITS.items()
            if (self._data_dir / name / file).is_file()
        }
        if original:
            splits = {split: logiqa.parse(path) for split, path in original.items()}
        else:
            found = find_rows(self._data_dir, name, config["dataset_path"], config["dataset_name"])
            splits = {
                split: logiqa.normalise([row for _, row in read_rows(paths)]) for split, paths in found.splits.items()
            }
        return self._write(name, splits)

    def subjects(self) -> set[str]:
        """MMLU's subjects that have rows.

        Raises:
            UserError: none has.
        """
        here = {subject for subject in self._known if self._subject_folder(subject) is not None}
        present = (here | self._split("test").keys()) & set(self._known)
        if not present:
            raise UserError(f"no local rows of task 'mmlu': no row of {self._data_dir} is of a subject of MMLU")
        return present

    def of_subject(self, subject: str) -> LocalRows:
        """Rows of one of MMLU's subjects.

        Raises:
            UserError: there are none, or they are damaged.
        """
        if self._subject_folder(subject) is not None:
            return find_rows(self._data_dir, mmlu.MMLU, "cais/mmlu", subject)
        splits = {}
        for split in ("test", "dev"):
            rows = self._split(split).get(subject)
            if rows is None:
                raise UserError(
                    f"the {split} rows of MMLU in {self._data_dir} have none of subject {subject!r}; add its rows or "
                    "leave the subject out"
                )
            splits[split] = rows
        return self._write(f"{mmlu.MMLU}/{subject}", splits)

    def _subject_folder(self, subject: str) -> Path | None:
        """The subject's own folder, as the hub has them."""
        folders = [self._data_dir / name / subject for name in (mmlu.MMLU, "cais/mmlu")]
        return next((folder for folder in folders if folder.is_dir()), None)

    def _split(self, split: str) -> dict[str, Rows]:
        """MMLU's rows by subject, where they stand together."""
        if split in self._mmlu:
            return self._mmlu[split]
        subjects: dict[str, Rows] = {}
        if not any(self._subject_folder(subject) for subject in self._known):
            found = find_rows(self._data_dir, mmlu.MMLU, "cais/mmlu", "all")
            if split not in found.splits:
                raise UserError(f"no local rows of task 'mmlu': {found.folder} has no {split}.jsonl or .parquet file")
            for place, row in read_rows(found.splits[split]):
                if not isinstance(row.get("subject"), str):
                    raise UserError(f"{place} is not an MMLU row: it has no subject; fix or remove it")
                subjects.setdefault(row["subject"], []).append(row)
        self._mmlu[split] = subjects
        return subjects

    def _write(self, name: str, splits: dict[str, Rows]) -> LocalRows:
        folder = self._scratch / name
        files = {split: [folder / f"{split}.jsonl"] for split in splits}
        for split, rows in splits.items():
            write_rows(files[split][0], rows)
        return LocalRows(folder, "json", files)
