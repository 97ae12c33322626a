"""``inheritune prepare``: text into packed tokens."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inheritune_lit.data.args import PrepareArgs
from inheritune_lit.data.encoding import DocumentEncoder
from inheritune_lit.data.finalize import Existing, finish, open_existing
from inheritune_lit.data.formats.table import format_of
from inheritune_lit.data.jobs import Job, plan_jobs
from inheritune_lit.data.nodes import default_workers
from inheritune_lit.data.packed import SPLITS
from inheritune_lit.data.pool import run_jobs, stop_at_once
from inheritune_lit.data.shards import PartsContext, Step
from inheritune_lit.data.sources import SourceFile, find_sources
from inheritune_lit.data.subset import Quota, estimate_thresholds, quotas_of
from inheritune_lit.data.verify import VerifyResult, verify_packed
from inheritune_lit.data.workdir import WorkFolder, locked, work_folder
from inheritune_lit.errors import UserError
from inheritune_lit.io.progress import Progress
from inheritune_lit.tokenizer import Tokenizer

logger = logging.getLogger(__name__)
_BYTES_WORTH_A_WORKER = 1 << 22  # starting one takes about as long as encoding this much text
_BYTES_A_TOKEN = 3.5  # English and code have 3 to 4


@dataclass(frozen=True)
class _Preparation:
    """What one call has to do.

    Attributes:
        sources: new files.
        existing: data packed before that they are added to.
        jobs: for the new files.
        quotas: of a subset.
        plan: what every call on the same output has to agree on.
    """

    sources: list[SourceFile]
    existing: Existing | None
    jobs: list[Job]
    quotas: list[Quota]
    plan: dict[str, Any]


@dataclass(frozen=True)
class PrepareResult:
    """What a preparation packed.

    Attributes:
        out_dir: the packed data.
        domains: the manifest's counts by domain; empty where nothing was written.
        seconds: how long it took.
    """

    out_dir: Path
    domains: dict[str, dict[str, Any]] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def tokens(self) -> int:
        """Tokens of both splits."""
        return sum(record[split]["tokens"] for record in self.domains.values() for split in SPLITS)

    def __str__(self) -> str:
        if not self.domains:
            return ""
        counts = f"{'documents':>12} {'tokens':>15} {'val documents':>14} {'val tokens':>12}"
        lines = [f"{'domain':<20} {counts} {'long rows':>10} {'empty rows':>11} {'broken rows':>12}"]
        for domain, record in self.domains.items():
            train, val = record["train"], record["val"]
            counts = f"{train['documents']:>12,} {train['tokens']:>15,} {val['documents']:>14,} {val['tokens']:>12,}"
            # Where rows name their domain, those left out belong to none; they are in the manifest's "sources".
            long, empty, broken = (
                f"{record[name]:,}" if name in record else "-" for name in ("long_rows", "empty_rows", "broken_rows")
            )
            lines.append(f"{domain:<20} {counts} {long:>10} {empty:>11} {broken:>12}")
        rate = self.tokens / self.seconds
        return "\n".join([*lines, f"{self.tokens:,} tokens in {self.seconds:.1f} s, {rate:,.0f} tokens/s"])


def prepare(args: PrepareArgs) -> PrepareResult | VerifyResult:
    """Tokenise a corpus into ``out_dir/{train,val}/<domain>.{bin,idx}`` with a manifest, or verify such a folder.

    The same call continues one that was stopped, and adds files that have come since. What is written does not depend
    on the number of workers.

    Raises:
        UserError: bad input; ``out_dir`` stays as it was.
    """
    if args.verify is not None:
        return verify_packed(args.verify)
    assert args.source and args.tokenizer_dir and args.out_dir, "PrepareArgs checks it"
    work = work_folder(args.out_dir)
    if not args.dry_run:
        work.restore()
    preparation = _plan(args.source, args.tokenizer_dir, args.out_dir, args)
    work.agree(preparation.plan)
    _announce(preparation, args.tokenizer_dir, args.out_dir, args)
    if done := sum(map(work.is_done, preparation.jobs)):
        logger.info(f"        {len(preparation.jobs)} parts; {done} are there already")
    if args.dry_run:
        return PrepareResult(args.out_dir)
    start = time.monotonic()
    with stop_at_once(), locked(work, 0, 1):
        if preparation.existing and not preparation.sources:
            logger.info(f"{args.out_dir} holds all of it already")
            work.remove()  # left where the last call was killed after all was done
            return PrepareResult(args.out_dir)
        try:
            thresholds = _fix_thresholds(preparation, work, args.tokenizer_dir, args)
            context = PartsContext(work.parts, args.tokenizer_dir, preparation.plan["dtype"], args, thresholds)
            _make_parts(preparation.jobs, work, context, args.num_workers or default_workers())
            domains = finish(
                work,
                preparation.sources,
                preparation.jobs,
                preparation.existing,
                preparation.quotas,
                args,
                preparation.plan,
            )
            return PrepareResult(args.out_dir, domains, time.monotonic() - start)
        except (KeyboardInterrupt, SystemExit, UserError):
            if any(map(work.is_done, preparation.jobs)):
                logger.info(f"inheritune: finished parts are kept in {work.path}; the same command continues")
            raise


def _plan(source: str, tokenizer_dir: Path, out_dir: Path, options: PrepareArgs) -> _Preparation:
    sources, tokenizer = find_sources(source, options), Tokenizer(tokenizer_dir)
    if options.end_of_document and tokenizer.eos_id is None:
        raise UserError(f"{tokenizer.path} defines no EOS token; name one there or give --end_of_document false")
    if options.end_of_document and (tokenizer.eos_id or 0) >= tokenizer.vocab_size:
        raise UserError(
            f"the EOS id of {tokenizer_dir} is {tokenizer.eos_id}, {tokenizer.path.name} has only "
            f"{tokenizer.vocab_size} ids; correct its configuration or give --end_of_document false"
        )
    dtype = "uint16" if tokenizer.vocab_size <= 2**16 else "int32"
    described = {
        "file": tokenizer.path.name,
        "sha256": tokenizer.sha256(),
        "vocab_size": tokenizer.vocab_size,
        "eos_id": tokenizer.eos_id,
    }
    plan = {"tokenizer": described, "dtype": dtype, "options": options.content_settings()}
    existing = open_existing(out_dir, plan, sources)
    new = existing.new_sources if existing else sources
    quotas = quotas_of(options, sorted({file.domain for file in sources}))
    return _Preparation(new, existing, plan_jobs(new, options), quotas, plan)


def _announce(preparation: _Preparation, tokenizer_dir: Path, out_dir: Path, options: PrepareArgs) -> None:
    sources, plan = preparation.sources, preparation.plan
    domains = sorted({file.domain for file in sources})
    kinds = [format_of(file.name, options) for file in sources]
    text_bytes = sum(file.bytes * kind.text_share for file, kind in zip(sources, kinds, strict=True) if kind)
    tokens = text_bytes / _BYTES_A_TOKEN
    if options.max_tokens is not None:
        tokens = min(tokens, options.max_tokens)
    size = tokens * {"uint16": 2, "int32": 4}[plan["dtype"]]
    added = f", beside {len(preparation.existing.packed_sources)} packed before" if preparation.existing else ""
    logger.info(
        f"prepare {sum(file.bytes for file in sources):,} bytes in {len(sources)} files{added}, "
        f"{len(domains)} domains ({', '.join(domains)})\n"
        f"        with {tokenizer_dir / plan['tokenizer']['file']} ({plan['tokenizer']['vocab_size']:,} ids, "
        f"{plan['dtype']}), {options.val_fraction:.2%} for validation\n"
        f"        to {out_dir}, about {tokens / 1e6:,.1f}M tokens, {size / 1e6:,.1f} MB"
    )
    for quota in preparation.quotas:
        logger.info(f"        {quota.tokens:,} tokens of {', '.join(quota.domains)}, drawn at random")
    if options.drop_duplicates:
        logger.info("        without exact duplicates: 40 bytes of memory a document while joining")


def _fix_thresholds(
    preparation: _Preparation, work: WorkFolder, tokenizer_dir: Path, options: PrepareArgs
) -> dict[str, int] | None:
    """Estimate a subset's thresholds, once for all calls and nodes."""
    fixed = work.read_plan()
    if fixed is None:
        thresholds = None
        if preparation.quotas:
            logger.info("inheritune: estimating how many tokens the corpus has")
            encoder = DocumentEncoder(tokenizer_dir, preparation.plan["dtype"], options.parse_special_tokens)
            pieces = [piece for job in preparation.jobs for piece in job.pieces]
            thresholds = estimate_thresholds(preparation.quotas, pieces, encoder, options, work.path / "probe")
        fixed = work.fix({**preparation.plan, "thresholds": thresholds})
    return fixed["thresholds"]


def _make_parts(jobs: Sequence[Job], work: WorkFolder, context: PartsContext, num_workers: int) -> None:
    waiting = [job for job in jobs if not work.is_done(job)]
    total, left = sum(job.bytes for job in jobs), sum(job.bytes for job in waiting)
    workers = min(num_workers, 1 + left // _BYTES_WORTH_A_WORKER)
    start, documents, tokens = time.monotonic(), 0, 0
    with Progress("prepare", total, "B", done=total - left) as progress:

        def report(step: Step) -> None:
            nonlocal documents, tokens
            documents += step.documents
            tokens += step.tokens
            rate = tokens / max(time.monotonic() - start, 1e-9)
            progress.update(step.bytes, f"{documents:,} documents, {tokens:,} tokens, {rate:,.0f} tokens/s")

        run_jobs(waiting, context, workers, report)
