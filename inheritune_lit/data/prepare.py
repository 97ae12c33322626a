"""``inheritune prepare``: text into packed tokens.

Source files are found and cut into shards (``plan``), workers encode and pack each shard (``shards``), and
the shards are merged into the output with its manifest (``finalize``). Everything until then is in a workdir beside
the output, from which the same call continues.
"""

import logging
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, as_completed
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from inheritune_lit.data.args import PrepareArgs
from inheritune_lit.data.encoding import DocumentEncoder
from inheritune_lit.data.finalize import finalize
from inheritune_lit.data.manifest import SPLITS, Count, PackedDomain
from inheritune_lit.data.packed import VerifyResult, verify_packed
from inheritune_lit.data.plan import PreparePlan, WorkDir, make_plan
from inheritune_lit.data.shards import Report, Shard, ShardContext, ShardSettings, ShardWriter, write_shard
from inheritune_lit.data.subset import estimate_thresholds
from inheritune_lit.errors import UserError
from inheritune_lit.io.executors import available_cores, open_executor
from inheritune_lit.io.progress import Progress
from inheritune_lit.io.records import write_record

logger = logging.getLogger(__name__)

_BYTES_WORTH_A_WORKER = 1 << 22  # starting one takes about as long as encoding this much text


@dataclass(frozen=True)
class PrepareResult:
    """What a preparation packed, as the manifest says, and how long it took; no domain where nothing was written."""

    out_dir: Path
    domains: dict[str, PackedDomain] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def tokens(self) -> int:
        """Tokens of both splits."""
        return sum(domain[split].tokens for domain in self.domains.values() for split in SPLITS)

    def __str__(self) -> str:
        if not self.domains:
            return ""
        counts = f"{'documents':>12} {'tokens':>15} {'val documents':>14} {'val tokens':>12}"
        lines = [f"{'domain':<20} {counts} {'long rows':>10} {'empty rows':>11} {'broken rows':>12}"]
        for name, domain in self.domains.items():
            train, val = domain.train, domain.val
            counts = f"{train.documents:>12,} {train.tokens:>15,} {val.documents:>14,} {val.tokens:>12,}"
            # Where rows name their domain, those left out belong to none; they are in the manifest's "sources".
            left_out = (domain.long_rows, domain.empty_rows, domain.broken_rows)
            long, empty, broken = ("-" if rows is None else f"{rows:,}" for rows in left_out)
            lines.append(f"{name:<20} {counts} {long:>10} {empty:>11} {broken:>12}")
        rate = self.tokens / self.seconds
        return "\n".join([*lines, f"{self.tokens:,} tokens in {self.seconds:.1f} s, {rate:,.0f} tokens/s"])


def prepare(args: PrepareArgs, executor: Executor | None = None) -> PrepareResult | VerifyResult:
    """Tokenises a corpus into ``out_dir/{train,val}/<domain>.{bin,idx}`` with a manifest, or verifies such a folder.

    The same call continues one that was stopped, and appends files that have come since. What is written does not
    depend on who does the work: processes of this machine, a cluster, or an executor whose workers see the same files,
    such as ``dask.distributed.Client(...).get_executor()``. Bad input is a ``UserError``; ``out_dir`` stays as it was.
    """
    if args.verify is not None:
        return verify_packed(args.verify)
    assert args.out_dir is not None, "PrepareArgs checks it"
    workdir = WorkDir(args.out_dir)
    if not args.dry_run:
        workdir.restore_output()
    plan = make_plan(args)
    if recorded := workdir.read_settings():
        subject, advice = f"{workdir.path} holds unfinished work of", "give the former ones, or remove that folder"
        recorded.check_same(plan.settings, subject, advice)
    logger.info(str(plan))
    if done := len(workdir.finished(plan.shards)):
        logger.info(f"        {done} of {len(plan.shards)} shards are there already")
    if args.dry_run:
        return PrepareResult(args.out_dir)
    start = time.monotonic()
    with _stop_at_once(), workdir.locked():
        if plan.packed_before and not plan.sources:
            logger.info(f"{args.out_dir} holds all of it already")
            workdir.remove()  # left where the last call was killed after all was done
            return PrepareResult(args.out_dir)
        try:
            _write_missing_shards(plan, workdir, executor)
            domains = finalize(workdir, plan)
        except (KeyboardInterrupt, SystemExit, UserError):
            if workdir.finished(plan.shards):
                logger.info(f"inheritune: finished shards are kept in {workdir.path}; the same command continues")
            raise
    return PrepareResult(args.out_dir, domains, time.monotonic() - start)


def _write_missing_shards(plan: PreparePlan, workdir: WorkDir, executor: Executor | None) -> None:
    args, settings = plan.args, workdir.read_settings()
    if settings is None:
        thresholds = None
        if plan.quotas:
            assert args.tokenizer_dir is not None, "PrepareArgs checks it"
            logger.info("inheritune: estimating how many tokens the corpus has")
            encoder = DocumentEncoder(args.tokenizer_dir, plan.settings.dtype, args.parse_special_tokens)
            ranges = [part for shard in plan.shards for part in shard.ranges]
            thresholds = estimate_thresholds(plan.quotas, ranges, encoder, args, workdir.path / "probe")
        settings = ShardSettings(**vars(plan.settings), thresholds=thresholds)
        write_record(workdir.plan, settings)  # once for all calls and workers
    context = ShardContext(workdir.shards, Path.cwd(), args, settings)
    finished = set(workdir.finished(plan.shards))
    missing = [shard for shard in plan.shards if shard not in finished]
    if not missing:
        return
    start, done = time.monotonic(), Count()
    total = sum(shard.bytes for shard in plan.shards)
    with Progress("prepare", total, "B", done=sum(shard.bytes for shard in finished)) as progress:

        def report(size: int, packed: Count) -> None:
            nonlocal done
            done += packed
            rate = done.tokens / max(time.monotonic() - start, 1e-9)
            progress.update(size, f"{done.documents:,} documents, {done.tokens:,} tokens, {rate:,.0f} tokens/s")

        worth = 1 + sum(shard.bytes for shard in missing) // _BYTES_WORTH_A_WORKER
        workers = min(args.num_workers or available_cores(), worth, len(missing))
        with nullcontext(executor) if executor else open_executor(workers, args.cluster) as opened:
            if opened is not None:
                _write_on(opened, missing, context, report)
            else:
                writer = ShardWriter(context)
                for shard in missing:
                    writer.write(shard, report)


def _write_on(executor: Executor, shards: Sequence[Shard], context: ShardContext, report: Report) -> None:
    # The largest first, so that none is left over at the end.
    by_size = sorted(shards, key=lambda shard: shard.bytes, reverse=True)
    futures = [executor.submit(write_shard, context, shard) for shard in by_size]
    try:
        for future in as_completed(futures):
            for size, packed in future.result():
                report(size, packed)
    finally:
        for future in futures:
            future.cancel()


@contextmanager
def _stop_at_once() -> Iterator[None]:
    """While the block runs, SIGTERM raises ``SystemExit`` (143), so that what is half-done is cleaned up."""
    main = threading.current_thread() is threading.main_thread()  # Python lets only this one handle signals
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number)) if main else None
    try:
        yield
    finally:
        if main:
            signal.signal(signal.SIGTERM, before)
