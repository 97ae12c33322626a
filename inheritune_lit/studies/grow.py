"""``inheritune grow``: Algorithm 1 of the paper.

Require: reference model M_ref with k layers, data sets D_train and D_val, steps T
1: initialize M_tgt with the first n = k/2 layers of M_ref
2: train M_tgt on D_train for T steps
3: while M_tgt performance < M_ref performance on D_val do
4:     grow M_tgt by inheriting additional layers
5:     train M_tgt for T steps
6: end while
7: return M_tgt
"""

import logging
import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import inheritune_lit as lit
from inheritune_lit.io.folders import own_folder
from inheritune_lit.io.manifest import check_folder, read_manifest, sha256_file, write_manifest
from inheritune_lit.studies import rounds
from inheritune_lit.studies.args import GrowArgs
from inheritune_lit.studies.runner import StudyResult, training_of

_KIND, _FREE = "growth", ("data",)  # the folder of the data may have moved: its hash is compared
logger = logging.getLogger(__name__)


def grow(args: GrowArgs) -> StudyResult[rounds.Growth]:
    """Trains, compares with the reference, adds layers, trains again, until the loss is not worse than the reference's.

    The same call continues what was stopped or killed, with the outcome of an undisturbed one. ``out_dir`` holds a
    checkpoint and a run folder per round, ``reference.json`` with the reference's losses, and ``grow.json``, ``.md``
    and ``.png``, the history. Bad input is a ``UserError`` before any training; Ctrl-C saves first.
    """
    with lit.resolve_reference(args.ref) as resolved:
        # Nothing is downloaded before everything else is known to be right.
        resolved = resolved if resolved.repository else resolved.open()
        growing = _Growing(args, resolved.reference)
        check_folder(args.out_dir, _KIND, growing.settings, ("reference", *_FREE))
        growing.log(str(growing))
        if args.dry_run:
            return StudyResult()
        opened = resolved if resolved.reference.weights else resolved.open()
        with lit.on_first_rank(growing.fabric, own_folder(args.out_dir)):
            growth, before = growing.begin(opened), None
            for one in growing.rounds:
                if len(growth.rounds) < one.round:
                    start = growing.inherit(one, before)  # lines 1 and 4
                    result = growing.train(one, start)  # lines 2 and 5
                    if result.final is None:
                        return StudyResult(growth, str(result))
                    growing.compare(one)  # line 3
                if growth.rounds[one.round - 1].met:
                    return growing.finish("met")
                before = args.out_dir / one.folder
            return growing.finish(growing.limit)


class _Growing(rounds.GrowthPlan):
    """The steps of Algorithm 1. Each is done once: what is there already is kept."""

    def begin(self, resolved: lit.ResolvedReference) -> rounds.Growth:
        """Begins in ``out_dir``, or checks what was begun there, and measures the opened reference."""
        self.out_dir, self.started = self.args.out_dir, time.monotonic()
        self.reference, identity = resolved.reference, lit.reference_identity(resolved)
        settings = {"reference": identity, **self.settings}
        found = check_folder(self.out_dir, _KIND, settings, _FREE)
        self.fabric.barrier()
        if self.first and found is None:
            write_manifest(self.out_dir, _KIND, {"settings": settings})
        self.fabric.barrier()
        ref, load = self.reference, partial(lit.build_reference, self.reference)
        losses = self.evaluator.measure(self.out_dir / "reference.json", identity, f"measure {ref.name}", load)
        loss, stderr, _, _ = lit.mean_loss(losses.losses, losses.targets)
        self.log(f"reference: held-out loss {loss:.4f} ± {stderr:.4f}")
        tokens = (read_manifest(ref.folder) or {}).get("tokens")
        parameters = lit.count_parameters(lit.tensor_shapes(ref.config, ref.tied))
        described = rounds.GrownReference(ref.name, ref.config.n_layer, parameters, loss, stderr, tokens)
        self.reference_losses, self.growth = losses, rounds.Growth(described, rounds.read_rounds(self.out_dir))
        return self.growth

    def log(self, text: str) -> None:
        """Says something once, however many devices there are."""
        if self.first:
            logger.info(text)

    def inherit(self, one: rounds.Round, before: Path | None) -> Path:
        """Makes the checkpoint that a round starts from: layers of the reference, behind those that were trained."""
        if before is None and self.args.initial_checkpoint_dir:
            return self.args.initial_checkpoint_dir
        start = self.out_dir / f"start-{one.round:02}-{one.n_layer}l"
        if self.first and not start.exists():
            if before is None or self.args.old_layers == "inherited":
                lit.slice_model(lit.SliceArgs(self.args.ref, layers=",".join(map(str, one.layers)), out_dir=start))
            else:
                layers = tuple(one.layers)
                lit.write_grown(start, self.reference, before / lit.FINAL, layers, one.added, self.attn_scale)
        self.fabric.barrier()
        return start

    def train(self, one: rounds.Round, start: Path) -> lit.RunResult:
        """Trains for T steps, with an optimizer, a schedule and a data order of its own; no ``final`` where stopped."""
        args, seconds = self.args, self.args.train.max_time  # for the whole call
        if seconds is not None:  # what is left of it, the same on every rank, so that all stop
            seconds = self.fabric.broadcast(seconds - (time.monotonic() - self.started))
            if seconds <= 0:
                self.log(f"--train.max_time is over before round {one.round}; the same command continues")
                return lit.RunResult(None)
        changes = {"seed": args.seed + one.round - 1, "train": replace(args.train, max_time=seconds)}
        return lit.pretrain(training_of(args, start, self.out_dir / one.folder, **changes))

    def compare(self, one: rounds.Round) -> None:
        """Measures a trained model on D_val, compares it with the reference, and records the round."""
        path, final = self.out_dir / one.folder / "val_losses.json", self.out_dir / one.folder / lit.FINAL
        identity, load = {"sha256": sha256_file(final / lit.WEIGHTS)}, partial(lit.load_model, final)
        losses = self.evaluator.measure(path, identity, f"measure {one.folder}", load)
        comparison = lit.compare_losses(losses, self.reference_losses, self.args.margin)
        stderr = lit.mean_loss(losses.losses, losses.targets)[1]
        self.growth.rounds.append(rounds.GrownRound(**asdict(one), **asdict(comparison), loss_stderr=stderr))
        if self.first:
            self.growth.save(self.out_dir)
        self.log(f"round {one.round}, {one.n_layer} layers: {comparison.words()}")

    def finish(self, outcome: str) -> StudyResult[rounds.Growth]:
        """Records why growing ended, and returns the optimized model (line 7)."""
        growth = self.growth
        growth.outcome, growth.final = outcome, f"{growth.rounds[-1].folder}/{lit.FINAL}"
        if self.first:
            growth.save(self.out_dir)
        files = f"{self.out_dir}/{rounds.RECORD}, {rounds.TABLE} and {rounds.FIGURE}"
        return StudyResult(growth, f"{growth.text()}wrote {self.out_dir / growth.final} and {files}")
