"""``inheritune prepare``: text into packed tokens.

Source files are found and cut into shards (``plan``), workers encode and pack each shard (``shards``), and the shards
are merged here into the output with its manifest. Everything until then is in a workdir beside the output, from which
the same call continues.
"""

import hashlib
import logging
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, as_completed
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from itertools import chain, groupby
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from inheritune_lit.data import shards
from inheritune_lit.data.args import PrepareArgs
from inheritune_lit.data.encoding import DocumentEncoder
from inheritune_lit.data.formats import ROW_COUNTS, ReadReport
from inheritune_lit.data.manifest import (
    SPLITS,
    Count,
    PackedDomain,
    PackedFile,
    PackedManifest,
    PackedSource,
    Share,
    find_packed_manifest,
)
from inheritune_lit.data.megatron import DocumentSpan, beside, consecutive_spans, write_index
from inheritune_lit.data.packed import VerifyResult, verify_packed
from inheritune_lit.data.plan import PreparePlan, choose_documents, estimate_thresholds, make_plan
from inheritune_lit.errors import UserError
from inheritune_lit.io.executors import available_cores, open_executor
from inheritune_lit.io.folders import OutOfSpace, explain_full_disk, new_folder
from inheritune_lit.io.machine import handle_signals
from inheritune_lit.io.manifest import sha256_file, write_manifest
from inheritune_lit.io.progress import Progress
from inheritune_lit.io.records import write_record

logger = logging.getLogger(__name__)

_BYTES_WORTH_A_WORKER = 1 << 22  # starting one takes about as long as encoding this much text
_BYTES_WORTH_KEEPING = 1 << 28
_WARNINGS = 10
_COPY_BYTES = 1 << 22
_TABLE = "{:<20} {:>12} {:>15} {:>14} {:>12} {:>10} {:>11} {:>12}"


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
        names = "documents", "tokens", "val documents", "val tokens", "long rows", "empty rows", "broken rows"
        lines = [_TABLE.format("domain", *names)]
        for name, domain in self.domains.items():
            # Where rows name their domain, those left out belong to none; they are in the manifest's "sources".
            left_out = domain.long_rows, domain.empty_rows, domain.broken_rows
            numbers = *vars(domain.train).values(), *vars(domain.val).values(), *left_out
            lines.append(_TABLE.format(name, *("-" if number is None else f"{number:,}" for number in numbers)))
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
    workdir = shards.WorkDir(args.out_dir)
    if not args.dry_run:
        workdir.restore_output()
    plan = make_plan(args)
    if recorded := workdir.read_settings():
        advice = "give the former ones, or remove that folder"
        recorded.check_same(plan.settings, f"{workdir.path} holds unfinished work of", advice)
    logger.info(str(plan))
    if done := len(workdir.finished(plan.shards)):
        logger.info(f"        {done} of {len(plan.shards)} shards are there already")
    if args.dry_run:
        return PrepareResult(args.out_dir)
    start = time.monotonic()
    # SIGTERM raises ``SystemExit``, so that what is half-done is cleaned up.
    with handle_signals(lambda number, frame: sys.exit(128 + number), signal.SIGTERM), workdir.locked():
        if find_packed_manifest(args.out_dir) != plan.packed_before:
            raise UserError(f"another process has written {args.out_dir} meanwhile; run the same command again")
        if plan.packed_before and not plan.sources:
            logger.info(f"{args.out_dir} holds all of it already")
            workdir.remove()  # left where the last call was killed after all was done
            return PrepareResult(args.out_dir)
        workdir.remove_damaged(plan.shards)
        if plan.packed_before:
            verify_packed(args.out_dir)  # or damage would get new hashes
        try:
            _write_missing_shards(plan, workdir, executor)
            domains = _finalize(workdir, plan)
        except (KeyboardInterrupt, SystemExit, UserError) as error:
            kept, size = workdir.finished(plan.shards), sum(shard.bytes for shard in plan.shards)
            again = not isinstance(error, UserError) or isinstance(error, OutOfSpace)
            if not again and len(kept) == len(plan.shards) and size < _BYTES_WORTH_KEEPING:
                workdir.remove()  # with other options or other text, little of it would be of use
            elif kept:
                continues = "; the same command continues" if again else ""
                logger.info(f"inheritune: finished shards are kept in {workdir.path}{continues}")
            raise
    return PrepareResult(args.out_dir, domains, time.monotonic() - start)


def _write_missing_shards(plan: PreparePlan, workdir: shards.WorkDir, executor: Executor | None) -> None:
    args, settings = plan.args, workdir.read_settings()
    if settings is None:
        thresholds = None
        if plan.quotas:
            assert args.tokenizer_dir is not None, "PrepareArgs checks it"
            logger.info("inheritune: estimating how many tokens the corpus has")
            encoder = DocumentEncoder(args.tokenizer_dir, plan.settings.dtype, args.parse_special_tokens)
            ranges = [part for shard in plan.shards for part in shard.ranges]
            thresholds = estimate_thresholds(plan.quotas, ranges, encoder, args, workdir.path / "probe")
        settings = shards.ShardSettings(**vars(plan.settings), thresholds=thresholds)
        write_record(workdir.plan, settings)  # once for all calls and workers
    elif plan.quotas and (new := {file.domain for file in plan.sources} - (settings.thresholds or {}).keys()):
        former = f"{workdir.path} holds unfinished work on a corpus without {', '.join(sorted(new))}"
        raise UserError(f"{former}; remove that folder")
    context = shards.ShardContext(workdir.shards, Path.cwd(), args, settings)
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
            if opened is None:
                writer = shards.ShardWriter(context)
                for shard in missing:
                    writer.write(shard, report)
                return
            # The largest first, so that none is left over at the end.
            by_size = sorted(missing, key=lambda shard: shard.bytes, reverse=True)
            futures = [opened.submit(shards.write_shard, context, shard) for shard in by_size]
            try:
                for step in chain.from_iterable(future.result() for future in as_completed(futures)):
                    report(*step)
            finally:
                for future in futures:
                    future.cancel()


def _finalize(workdir: shards.WorkDir, plan: PreparePlan) -> dict[str, PackedDomain]:
    """Merges shards and what was packed before into the output and removes the workdir; returns it by domain."""
    settings, out_dir = plan.settings, workdir.out_dir
    before = plan.packed_before or PackedManifest(**vars(settings), max_token_id=0, domains={})
    folders = [workdir.shards / shard.id for shard in plan.shards]
    records = [(folder, record) for folder in folders for record in shards.ShardRecord.read(folder).ranges]
    read = _read_sources(plan, [record for _, record in records])
    sources = sorted([*read, *before.sources], key=lambda source: source.name)
    counts = [
        (out_dir / split / name, share.name, share[split])
        for name, domain in before.domains.items()
        for share in domain.sources
        for split in SPLITS
        if share[split].documents
    ]
    counts += [
        (folder / split / domain, record.source, count)
        for folder, record in records
        for domain, by_split in record.counts.items()
        for split, count in by_split.items()
    ]
    spans = sorted(consecutive_spans(counts), key=lambda span: (span.place, span.source))
    duplicates, short = choose_documents(spans, plan.args.drop_duplicates, plan.quotas, out_dir, settings.dtype)
    domains = _domains(sources, spans, by_rows=plan.args.domain_field is not None)
    _check_filled(workdir, domains, sum(source.rows for source in sources))
    with explain_full_disk(out_dir), new_folder(out_dir, replace=plan.packed_before is not None) as staging:
        max_token_id, files = 0, dict[str, PackedFile]()
        for split in SPLITS:
            (staging / split).mkdir()
        with Progress("merge shards", sum(span.size.tokens for span in spans), "token") as progress:
            for (split, domain), own in groupby(spans, key=lambda span: span.place):
                prefix = staging / split / domain
                largest, pair = _merge_spans(prefix, settings.dtype, list(own), progress.update)
                max_token_id = max(max_token_id, largest)
                files |= {f"{split}/{domain}.{ending}": file for ending, file in pair.items()}
        duplicates += before.duplicates
        described = {**vars(settings), "max_token_id": max_token_id, "domains": domains, "sources": sources}
        manifest = PackedManifest(**described, duplicates=duplicates, files=files)
        write_manifest(staging, "packed_data", asdict(manifest))
    workdir.remove()
    for quota, tokens in short:
        few = f"{', '.join(quota.domains)} gave only {tokens:,} of {quota.tokens:,} tokens"
        reason = "that is all, or, with --drop_duplicates, duplicates are many; give a larger --max_tokens then"
        logger.warning(f"inheritune: warning: {few}: {reason}")
    return domains


def _read_sources(plan: PreparePlan, records: Sequence[shards.RangeRecord]) -> list[PackedSource]:
    """Returns the sources that the ranges were cut from, refuses those with too many broken rows, warns of others."""
    reports: defaultdict[str, ReadReport] = defaultdict(ReadReport)
    hashes = {record.source: record.sha256 for record in records if record.sha256}  # by the range that begins a file
    for record in records:
        reports[record.source].add(record.report)
    paths = {file.name: file.path for file in plan.sources}
    for name, report in reports.items():
        report.check(paths[name])
    broken = [name for name, report in reports.items() if report.broken_rows]
    warnings = [f"{reports[name].describe_broken(paths[name])}; they are left out" for name in broken[:_WARNINGS]]
    if len(broken) > _WARNINGS:
        warnings.append(f"broken rows in {len(broken) - _WARNINGS} more files")
    warnings += [
        f"{reports[name].long_rows} of {reports[name].rows} rows of {paths[name]} left out: longer than "
        "--max_document_bytes, or than 8 MB without a place to cut"
        for name in [name for name, report in reports.items() if report.long_rows][:_WARNINGS]
    ]
    same: dict[int, str] = {}
    for name, report in reports.items() if not plan.args.drop_duplicates else ():
        if report.texts and (other := same.setdefault(report.texts, name)) != name:
            warnings.append(f"{paths[name]} has the same texts as {paths[other]}: they are packed twice")
    for warning in warnings:
        logger.warning(f"inheritune: warning: {warning}")
    rows = {name: {count: getattr(report, count) for count in ROW_COUNTS} for name, report in reports.items()}
    return [PackedSource(**vars(file), sha256=hashes[file.name], **rows[file.name]) for file in plan.sources]


def _domains(sources: Sequence[PackedSource], spans: Iterable[DocumentSpan], by_rows: bool) -> dict[str, PackedDomain]:
    """Returns the manifest's ``domains``; with ``by_rows`` the rows name them, else the sources do."""
    counts: defaultdict[tuple[str, str], dict[str, Any]] = defaultdict(dict)  # by domain and source, then split
    if not by_rows:
        counts.update({(source.domain, source.name): {} for source in sources})
    for span in spans:
        split, domain = span.place
        by_split = counts[domain, span.source]
        by_split[split] = by_split.get(split, Count()) + span.kept
    domains = {}
    for name in sorted({domain for domain, _ in counts}):
        own = [source for source in sources if (name, source.name) in counts]
        shares = [
            Share(path=one.path, name=one.name, bytes=one.bytes, sha256=one.sha256, **counts[name, one.name])
            for one in own
        ]
        rows = {} if by_rows else {count: sum(getattr(source, count) for source in own) for count in ROW_COUNTS}
        train, val = (sum((share[split] for share in shares), Count()) for split in SPLITS)
        domains[name] = PackedDomain(sources=shares, train=train, val=val, **rows)
    return domains


def _merge_spans(
    prefix: Path, dtype: str, spans: Sequence[DocumentSpan], report: Callable[[int], None]
) -> tuple[int, dict[str, PackedFile]]:
    """Writes the kept documents of spans as a pair, if any; returns the largest token id and the files by ending."""
    documents = sum(span.kept.documents for span in spans)
    if not documents:
        report(sum(span.size.tokens for span in spans))
        return 0, {}
    digest, max_token_id, itemsize = hashlib.sha256(), 0, np.dtype(dtype).itemsize
    with beside(prefix, "bin").open("wb") as target:
        for span in spans:
            with beside(span.prefix, "bin").open("rb") as source:
                for first, tokens in span.kept_tokens():
                    for chunk in _chunks(source, first * itemsize, tokens * itemsize):
                        digest.update(chunk)
                        max_token_id = max(max_token_id, int(np.frombuffer(chunk, dtype=dtype).max()))
                        target.write(chunk)
            report(span.size.tokens)
        size = target.tell()
    write_index(prefix, dtype, (span.kept_lengths() for span in spans), documents)
    index = beside(prefix, "idx")
    index_file = PackedFile(index.stat().st_size, sha256_file(index))
    return max_token_id, {"bin": PackedFile(size, digest.hexdigest()), "idx": index_file}


def _chunks(file: BinaryIO, start: int, size: int) -> Iterator[bytes]:
    file.seek(start)
    while size:
        chunk = file.read(min(size, _COPY_BYTES))
        if not chunk:
            raise UserError(f"{file.name} has become shorter; restore it, or remove its folder and prepare again")
        size -= len(chunk)
        yield chunk


def _check_filled(workdir: shards.WorkDir, domains: Mapping[str, PackedDomain], rows: int) -> None:
    """Refuses a corpus that does not fill both splits; warns about a domain that is missing from one."""
    for split, advice in (("train", "give more text"), ("val", "give more text or a larger --val_fraction")):
        bare = [name for name, domain in domains.items() if not domain[split].documents]
        if len(bare) == len(domains):
            workdir.remove()  # with other options or more text, little of it would be of use
            raise UserError(f"no document of {rows} rows is in the {split} split; {advice}")
        if bare:
            logger.warning(f"inheritune: warning: no {split} document in {', '.join(bare)}")
