"""Checkpoints scored on everything asked for, from where an earlier attempt stopped."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inheritune_lit.evaluation.encoding import Bos
from inheritune_lit.evaluation.lit_lm import LitLM
from inheritune_lit.evaluation.loading import LoadedTask
from inheritune_lit.evaluation.open_lm import Dtype, open_lm
from inheritune_lit.evaluation.ranks import Place
from inheritune_lit.evaluation.result_folder import ResultFolder
from inheritune_lit.evaluation.task_record import identity, samples_text, score_task
from inheritune_lit.evaluation.val_data import NAME as HELD_OUT
from inheritune_lit.evaluation.val_data import HeldOut, score_held_out
from inheritune_lit.model.quantize import Quantization


@dataclass(frozen=True)
class ModelOptions:
    """How checkpoints are opened, see ``open_lm``."""

    dtype: Dtype
    quantize: Quantization | None
    bos: Bos
    max_batch_tokens: int | None


class Scorer:
    """Scores one checkpoint after the other.

    Args:
        tasks: what to score.
        held_out: packed data to score too, or None.
        options: how to open the checkpoints.
        place: where to compute, and with whom.
        limit: rows a task; all when None.
        folder: where finished records are kept and looked for; None keeps none.
        log_samples: keep lm-eval's samples there too.
        cache_dir: folder of single requests' scores, see ``ScoreCache``; None keeps none.
    """

    def __init__(
        self,
        tasks: list[LoadedTask],
        held_out: HeldOut | None,
        options: ModelOptions,
        place: Place,
        limit: int | None,
        folder: ResultFolder | None,
        log_samples: bool,
        cache_dir: Path | None,
    ) -> None:
        self._tasks, self._held_out, self._options, self._place = tasks, held_out, options, place
        self._limit, self._folder, self._log_samples = limit, folder, log_samples
        self._cache_dir = cache_dir

    def check(self, name: str, checkpoint_dir: Path) -> None:
        """Refuse earlier results of another model or other settings before any work is done.

        Raises:
            UserError: there are such.
        """
        if self._folder is not None and self._folder.tasks(name):
            lm = self._open(checkpoint_dir)
            for task in self._tasks:
                self._finished(name, task.name, self._identity(lm, task))

    def score(self, name: str, checkpoint_dir: Path) -> dict[str, dict[str, Any]]:
        """Records of everything by its name; the held-out text's under ``held_out.NAME``."""
        lm = self._open(checkpoint_dir)
        records = {}
        if self._held_out is not None:
            same = identity(lm.provenance(), None) | self._held_out.describe()
            record = self._finished(name, HELD_OUT, same)
            if record is None:
                record = {"identity": same, **score_held_out(lm, name, self._held_out, self._place)}
                self._keep(name, HELD_OUT, record)
            records[HELD_OUT] = record
        for number, task in enumerate(self._tasks, start=1):
            same = self._identity(lm, task)
            record = self._finished(name, task.name, same)
            if record is None:
                if self._place.is_first:
                    print(f"{name}: {task.name} ({number} of {len(self._tasks)})", file=sys.stderr)
                scored, samples = score_task(lm, task, self._limit)
                record = {"checkpoint": str(checkpoint_dir), "identity": same, **scored}
                self._keep(name, task.name, record, samples_text(samples) if self._log_samples else None)
            records[task.name] = record
        return records

    def _open(self, checkpoint_dir: Path) -> LitLM:
        options = self._options
        return open_lm(
            checkpoint_dir,
            dtype=options.dtype,
            quantize=options.quantize,
            bos=options.bos,
            max_batch_tokens=options.max_batch_tokens,
            device=str(self._place.device),
            cache_dir=self._cache_dir,
            ranks=self._place.ranks,
        )

    def _identity(self, lm: LitLM, task: LoadedTask) -> dict[str, Any]:
        # Through JSON, as it will be read again: tuples become lists.
        return json.loads(json.dumps(identity(lm.provenance(), self._limit) | task.describe()))

    def _finished(self, name: str, task: str, same: dict[str, Any]) -> dict[str, Any] | None:
        return self._folder.read(name, task, same) if self._folder is not None else None

    def _keep(self, name: str, task: str, record: dict[str, Any], samples: str | None = None) -> None:
        if self._folder is not None and self._place.is_first:
            self._folder.write(name, task, record, samples)
