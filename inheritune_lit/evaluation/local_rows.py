"""Task rows from files: read from a folder, checked, and given to lm-eval's tasks."""

import hashlib
import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from inheritune_lit.data.containers import group_rows, open_parquet
from inheritune_lit.errors import UserError
from inheritune_lit.evaluation.suite import MMLU
from inheritune_lit.io.manifest import sha256_file
from inheritune_lit.io.reading import open_regular, parse_json

# "validation.jsonl" and, as the hub names them, "validation-00000-of-00002.parquet".
_FILE = re.compile(r"(?P<split>[\w.]+?)(-\d{5}-of-\d{5})?\.(jsonl|parquet)")
_MAX_LINE = 1 << 26
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class LocalRows:
    """Files of each split, all in one format; ``builder`` is the data library's name of it."""

    folder: Path
    builder: str
    splits: dict[str, list[Path]]

    def sha256(self) -> str:
        """One hash over all files."""
        hashes = [sha256_file(path) for split in sorted(self.splits) for path in self.splits[split]]
        return hashlib.sha256("".join(hashes).encode()).hexdigest()


def find_rows(data_dir: Path, task: str, dataset_path: str | None, dataset_name: str | None) -> LocalRows:
    """Rows in ``data_dir/<task>``, or in a copy of the hub's folder; none, or of two formats, are a ``UserError``."""
    names = [task, "truthfulqa_mc"] if task in ("truthfulqa_mc1", "truthfulqa_mc2") else [task]  # they share rows
    names += [dataset_path, dataset_path.split("/")[-1]] if dataset_path else []
    present = [data_dir / name for name in names if (data_dir / name).is_dir()]
    if not present:
        remedy = "put <split>.jsonl or .parquet files there, or mirror them with --fetch_data"
        raise UserError(f"no local rows of task {task!r}: {data_dir / task} is missing; {remedy}")
    for folder in present:
        for base in (folder / dataset_name if dataset_name else folder, folder, folder / "data"):
            if base.is_dir() and (rows := _rows_in(base)):
                return rows
    raise UserError(f"no local rows of task {task!r}: {present[0]} has no <split>.jsonl or <split>.parquet file")


def _rows_in(base: Path) -> LocalRows | None:
    """Rows of a folder, also where a split is a folder of its own as in the hub's parquet copies; None without any."""
    splits: dict[str, list[Path]] = {}
    for path in sorted(base.iterdir()):
        if path.is_file() and (match := _FILE.fullmatch(path.name)):
            splits.setdefault(match["split"], []).append(path)
        elif path.is_dir() and (parts := sorted(path.glob("[0-9][0-9][0-9][0-9].parquet"))):
            splits.setdefault(path.name, []).extend(parts)
    suffixes = {path.suffix for paths in splits.values() for path in paths}
    if len(suffixes) > 1:
        raise UserError(f"{base} holds both .jsonl and .parquet rows; keep one of them")
    return LocalRows(base, "json" if suffixes == {".jsonl"} else "parquet", splits) if splits else None


def read_rows(paths: list[Path]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where it stands, row) of each row; a ``UserError`` where a file is damaged or holds something else."""
    for path in paths:
        if path.suffix == ".parquet":
            with open_parquet(path) as file:
                groups = range(file.metadata.num_row_groups)
                rows = (row for group in groups for row in group_rows(file, path, group, None))
                for number, row in enumerate(rows, start=1):
                    if isinstance(row, UnicodeDecodeError):
                        raise UserError(f"{path} row {number} is not UTF-8 ({row.reason}); copy the file again")
                    yield f"{path} row {number}", row
            continue
        with open_regular(path) as file:
            for number, line in enumerate(iter(lambda: file.readline(_MAX_LINE), b""), start=1):
                row = parse_json(line, Path(f"{path}:{number}"), "a row", "fix or remove the line")
                if not isinstance(row, dict):
                    raise UserError(f"{path}:{number} holds a {type(row).__name__}, not a row; fix or remove the line")
                yield f"{path}:{number}", row


def write_rows(folder: Path, splits: dict[str, Rows]) -> LocalRows:
    """Write rows as a jsonl file per split."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        with (folder / f"{split}.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return LocalRows(folder, "json", {split: [folder / f"{split}.jsonl"] for split in splits})


class LocalTaskRows:
    """Finds tasks' rows (``find_rows``); LogiQA's and MMLU's are rewritten into ``scratch`` where they need it."""

    def __init__(self, data_dir: Path, scratch: Path, subjects: Collection[str]) -> None:
        self._data_dir, self._scratch, self._known = data_dir, scratch, set(subjects)
        # Subjects in folders of their own, as the hub has them.
        self._alone = {s for s in subjects if any((data_dir / base / s).is_dir() for base in (MMLU, "cais/mmlu"))}

    def of_task(self, name: str, config: dict[str, Any]) -> LocalRows:
        """Rows of a task that is not a subject of MMLU; ``config`` is lm-eval's description of it."""
        found = find_rows(self._data_dir, name, config.get("dataset_path"), config.get("dataset_name"))
        if name != "logiqa":
            return found
        splits = {split: space_logiqa([row for _, row in read_rows(paths)]) for split, paths in found.splits.items()}
        return write_rows(self._scratch / name, splits)

    def subjects(self) -> set[str]:
        """MMLU's subjects that have rows."""
        present = self._alone or {subject for subject, split in self._together if split == "test"} & self._known
        if not present:
            raise UserError(f"no local rows of task 'mmlu': no row of {self._data_dir} is of a subject of MMLU")
        return present

    def of_subject(self, subject: str) -> LocalRows:
        """Rows of one of MMLU's subjects."""
        if subject in self._alone:
            return find_rows(self._data_dir, MMLU, "cais/mmlu", subject)
        for split in ("test", "dev"):
            if self._alone or (subject, split) not in self._together:
                problem = f"the {split} rows of MMLU in {self._data_dir} have none of subject {subject!r}"
                raise UserError(f"{problem}; add its rows or leave the subject out")
        splits = {split: self._together[subject, split] for split in ("test", "dev")}
        return write_rows(self._scratch / MMLU / subject, splits)

    @cached_property
    def _together(self) -> dict[tuple[str, str], Rows]:
        """MMLU's rows by subject and split, where they stand together."""
        found = find_rows(self._data_dir, MMLU, "cais/mmlu", "all")
        rows: dict[tuple[str, str], Rows] = {}
        for split in ("test", "dev"):
            if split not in found.splits:
                raise UserError(f"no local rows of task 'mmlu': {found.folder} has no {split}.jsonl or .parquet file")
            for place, row in read_rows(found.splits[split]):
                if not isinstance(row.get("subject"), str):
                    raise UserError(f"{place} is not an MMLU row: it has no subject; fix or remove it")
                rows.setdefault((row["subject"], split), []).append(row)
        return rows


def space_logiqa(rows: Rows) -> Rows:
    """Rows as lm-eval's data set has them, which has a blank after every full stop; rows that have are left alone."""
    texts = [[row["context"], row["question"], *row["options"]] for row in rows]
    if not any(re.search(r"\.[^ ]", text) for row in texts for text in row):
        return rows
    spaced = [[text.replace(".", ". ").strip() for text in row] for row in texts]
    new = ({"context": context, "question": question, "options": options} for context, question, *options in spaced)
    return [row | changed for row, changed in zip(rows, new, strict=True)]
