"""``inheritune prepare``: text into packed tokens.

Source files are found and cut into shards (``plan``), workers encode and pack each shard (``shards``), and
the shards are merged into the output with its manifest (``finalize``). Everything until then is in a workdir beside
the output, from which the same call continues.
"""

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inheritune_lit.data.args import PrepareArgs
from inheritune_lit.data.encoding import DocumentEncoder
from inheritune_lit.data.finalize import finalize
from inheritune_lit.data.packed import SPLITS, VerifyResult, verify_packed
from inheritune_lit.data.plan import PreparePlan, make_plan
from inheritune_lit.data.shards import Shard, ShardContext, ShardWriter, Step, write_shard
from inheritune_lit.data.subset import estimate_thresholds
from inheritune_lit.data.workdir import WorkDir
from inheritune_lit.errors import UserError
from inheritune_lit.io.executors import available_cores, open_executor
from inheritune_lit.io.progress import Progress

logger = logging.getLogger(__name__)

_BYTES_WORTH_A_WORKER = 1 << 22  # starting one takes about as long as encoding this much text


@dataclass(frozen=True)
class PrepareResult:
    """What a preparation packed.

    Attributes:
        out_dir: the packed data.
        domains: what each domain holds now, as the manifest says; empty where nothing was written.
        seconds: how long it took.
    """

    out_dir: Path
    domains: dict[str, dict[str, Any]] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def tokens(self) -> int:
        """Tokens of both splits."""
        return sum(entry[split]["tokens"] for entry in self.domains.values() for split in SPLITS)

    def __str__(self) -> str:
        if not self.domains:
            return ""
        counts = f"{'documents':>12} {'tokens':>15} {'val documents':>14} {'val tokens':>12}"
        lines = [f"{'domain':<20} {counts} {'long rows':>10} {'empty rows':>11} {'broken rows':>12}"]
        for domain, entry in self.domains.items():
            train, val = entry["train"], entry["val"]
            counts = f"{train['documents']:>12,} {train['tokens']:>15,} {val['documents']:>14,} {val['tokens']:>12,}"
            # Where rows name their domain, those left out belong to none; they are in the manifest's "sources".
            long, empty, broken = (
                f"{entry[name]:,}" if name in entry else "-" for name in ("long_rows", "empty_rows", "broken_rows")
            )
            lines.append(f"{domain:<20} {counts} {long:>10} {empty:>11} {broken:>12}")
        rate = self.tokens / self.seconds
        return "\n".join([*lines, f"{self.tokens:,} tokens in {self.seconds:.1f} s, {rate:,.0f} tokens/s"])


def prepare(args: PrepareArgs, executor: Executor | None = None) -> PrepareResult | VerifyResult:
    """Tokenises a corpus into ``out_dir/{train,val}/<domain>.{bin,idx}`` with a manifest, or verifies such a folder.

    The same call continues one that was stopped, and appends files that have come since. What is written does not
    depend on who does the work.

    Args:
        args: what to prepare.
        executor: does the work, instead of processes of this machine or a cluster; any whose workers see the same
            files, such as ``dask.distributed.Client(...).get_executor()``.

    Raises:
        UserError: bad input; ``out_dir`` stays as it was.
    """
    if args.verify is not None:
        return verify_packed(args.verify)
    assert args.out_dir is not None, "PrepareArgs checks it"
    workdir = WorkDir.of(args.out_dir)
    if not args.dry_run:
        workdir.restore_output()
    plan = make_plan(args)
    workdir.check_plan(plan.settings)
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
    recorded = workdir.read_plan()
    if recorded is None:
        recorded = {**plan.settings, "thresholds": _estimate_thresholds(plan, workdir)}
        workdir.write_plan(recorded)
    context = ShardContext(
        workdir.shards,
        Path.cwd(),
        plan.tokenizer_dir.absolute(),
        plan.settings["tokenizer"]["sha256"],
        plan.settings["dtype"],
        plan.args,
        recorded["thresholds"],
    )
    finished = workdir.finished(plan.shards)
    missing = [shard for shard in plan.shards if shard not in set(finished)]
    total = sum(shard.bytes for shard in plan.shards)
    start, done = time.monotonic(), Step()
    with Progress("prepare", total, "B", done=sum(shard.bytes for shard in finished)) as progress:

        def report(step: Step) -> None:
            done.add(step)
            rate = done.tokens / max(time.monotonic() - start, 1e-9)
            progress.update(step.bytes, f"{done.documents:,} documents, {done.tokens:,} tokens, {rate:,.0f} tokens/s")

        if executor is not None:
            _write_on(executor, missing, context, report)
        elif missing:
            worth = 1 + sum(shard.bytes for shard in missing) // _BYTES_WORTH_A_WORKER
            workers = min(plan.args.num_workers or available_cores(), worth, len(missing))
            with open_executor(workers, plan.args.cluster) as opened:
                if opened is not None:
                    _write_on(opened, missing, context, report)
                else:
                    writer = ShardWriter(context)
                    for shard in missing:
                        writer.write(shard, report)


def _write_on(
    executor: Executor, shards: Sequence[Shard], context: ShardContext, report: Callable[[Step], None]
) -> None:
    # The largest first, so that none is left over at the end.
    by_size = sorted(shards, key=lambda shard: shard.bytes, reverse=True)
    futures = [executor.submit(write_shard, context, shard) for shard in by_size]
    try:
        for future in as_completed(futures):
            report(future.result())
    finally:
        for future in futures:
            future.cancel()


@contextmanager
def _stop_at_once() -> Iterator[None]:
    """While the block runs, SIGTERM raises ``SystemExit`` (143), so that what is half-done is cleaned up."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python lets only the main thread handle signals
        return

    def stop(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _estimate_thresholds(plan: PreparePlan, workdir: WorkDir) -> dict[str, int] | None:
    """Estimates a subset's thresholds, once for all calls and workers."""
    if not plan.quotas:
        return None
    logger.info("inheritune: estimating how many tokens the corpus has")
    encoder = DocumentEncoder(plan.tokenizer_dir, plan.settings["dtype"], plan.args.parse_special_tokens)
    ranges = [part for shard in plan.shards for part in shard.ranges]
    return estimate_thresholds(plan.quotas, ranges, encoder, plan.args, workdir.path / "probe")
