"""Checkpoints scored on everything asked for, from where an earlier attempt stopped."""

import json
import logging
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from inheritune_lit.data.packed import PackedDataset
from inheritune_lit.evaluation.args import EvaluateArgs
from inheritune_lit.evaluation.held_out import validate
from inheritune_lit.evaluation.lit_lm import LitLM
from inheritune_lit.evaluation.loading import LoadedTask
from inheritune_lit.evaluation.open_lm import open_lm
from inheritune_lit.evaluation.ranks import Ranks
from inheritune_lit.evaluation.result_folder import ResultFolder
from inheritune_lit.evaluation.task_record import identity, samples_text, score_task
from inheritune_lit.io.manifest import MANIFEST, sha256_file
from inheritune_lit.model.flops import LONGEST_BLOCK

logger = logging.getLogger(__name__)

HELD_OUT = "held_out"
"""Name of the record of packed data beside those of tasks."""
_TOKENS_PER_BATCH = 8192


class CheckpointScorer:
    """Scores one checkpoint after the other.

    Args:
        args: how to open the checkpoints, and which packed data to score too.
        tasks: what to score.
        ranks: the processes that share the work.
        folder: where finished records are kept and looked for; None keeps none.
    """

    def __init__(self, args: EvaluateArgs, tasks: list[LoadedTask], ranks: Ranks, folder: ResultFolder | None) -> None:
        self._args, self._tasks, self._ranks, self._folder = args, tasks, ranks, folder

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
        """Records of everything by its name; that of packed data under ``HELD_OUT``."""
        lm = self._open(checkpoint_dir)
        records = {}
        if self._args.val_data is not None:
            same = identity(lm.provenance(), None) | held_out_settings(self._args)
            record = self._finished(name, HELD_OUT, same)
            if record is None:
                record = {"identity": same, **self._score_held_out(lm, name, self._args.val_data)}
                self._keep(name, HELD_OUT, record)
            records[HELD_OUT] = record
        for number, task in enumerate(self._tasks, start=1):
            same = self._identity(lm, task)
            record = self._finished(name, task.name, same)
            if record is None:
                if self._ranks.is_first:
                    logger.info("%s: %s (%d of %d)", name, task.name, number, len(self._tasks))
                scored, samples = score_task(lm, task, self._args.limit)
                record = {"checkpoint": str(checkpoint_dir), "identity": same, **scored}
                self._keep(name, task.name, record, samples_text(samples) if self._args.log_samples else None)
            records[task.name] = record
        return records

    def _score_held_out(self, lm: LitLM, name: str, folder: Path) -> dict[str, Any]:
        """The loss in nats per token, as ``validate`` has it, ready for JSON."""
        block_size = self._args.max_seq_length or min(lm.max_length, LONGEST_BLOCK)
        dataset = PackedDataset(folder, "val", block_size)
        batch_size = max(1, _TOKENS_PER_BATCH // block_size)
        label = f"{name}: held-out text" if self._ranks.is_first else None
        blocks, device = self._args.val_blocks, self._ranks.device
        result = validate(lm.model, dataset, batch_size, blocks, device, label, self._ranks)
        record = asdict(result) | {"block_size": block_size}
        for part in (record, *record["domains"].values()):
            if math.isnan(part["stderr"]):  # which JSON does not know
                part["stderr"] = None
        return record

    def _open(self, checkpoint_dir: Path) -> LitLM:
        args = self._args
        return open_lm(
            checkpoint_dir,
            dtype=args.dtype,
            quantize=args.quantize,
            bos=args.bos,
            max_batch_tokens=args.max_batch_tokens,
            device=str(self._ranks.device),
            cache_dir=args.cache_dir,
            ranks=self._ranks,
        )

    def _identity(self, lm: LitLM, task: LoadedTask) -> dict[str, Any]:
        # Through JSON, as it will be read again: tuples become lists.
        return json.loads(json.dumps(identity(lm.provenance(), self._args.limit) | task.describe()))

    def _finished(self, name: str, task: str, same: dict[str, Any]) -> dict[str, Any] | None:
        return self._folder.read(name, task, same) if self._folder is not None else None

    def _keep(self, name: str, task: str, record: dict[str, Any], samples: str | None = None) -> None:
        if self._folder is not None and self._ranks.is_first:
            self._folder.write(name, task, record, samples)


def held_out_settings(args: EvaluateArgs) -> dict[str, Any]:
    """What identifies the score of packed data; nothing where none is asked for."""
    if args.val_data is None:
        return {}
    val_sha256 = sha256_file(args.val_data / MANIFEST)
    return {"val_sha256": val_sha256, "val_blocks": args.val_blocks, "max_seq_length": args.max_seq_length}
