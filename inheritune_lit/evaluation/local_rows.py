"""A task's rows in a local folder, in the shape that lm-eval's tasks read."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from inheritune_lit.errors import UserError
from inheritune_lit.evaluation import paper_tasks as logiqa
from inheritune_lit.evaluation import paper_tasks as mmlu
from inheritune_lit.evaluation.rows import LocalRows, find_rows, read_rows, write_rows

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
        """Rows of a task that is no subject of MMLU.

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
                    raise UserError(f"{place} is no MMLU row: it has no subject; mend or remove it")
                subjects.setdefault(row["subject"], []).append(row)
        self._mmlu[split] = subjects
        return subjects

    def _write(self, name: str, splits: dict[str, Rows]) -> LocalRows:
        folder = self._scratch / name
        files = {split: [folder / f"{split}.jsonl"] for split in splits}
        for split, rows in splits.items():
            write_rows(files[split][0], rows)
        return LocalRows(folder, "json", files)
