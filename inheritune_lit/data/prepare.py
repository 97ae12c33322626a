"""``inheritune prepare``: text into packed tokens."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inheritune_lit.data.args import PrepareOptions
from inheritune_lit.data.encoding import DocumentEncoder
from inheritune_lit.data.finalize import Existing, finish, open_existing
from inheritune_lit.data.formats.table import format_of
from inheritune_lit.data.jobs import Job, plan_jobs
from inheritune_lit.data.nodes import default_workers, share
from inheritune_lit.data.pool import run_jobs, stop_at_once
from inheritune_lit.data.shards import PartsContext, Step
from inheritune_lit.data.sources import SourceFile, find_sources
from inheritune_lit.data.subset import Quota, estimate_thresholds, quotas_of
from inheritune_lit.data.workdir import WorkFolder, locked, work_folder
from inheritune_lit.errors import UserError
from inheritune_lit.io.progress import Progress
from inheritune_lit.tokenizer import Tokenizer

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


def prepare(
    source: str | Path,
    tokenizer_dir: Path,
    out_dir: Path,
    *,
    num_workers: int | None = None,
    node_rank: int | None = None,
    num_nodes: int | None = None,
    dry_run: bool = False,
    **options: Any,
) -> None:
    """Tokenise a corpus into ``out_dir/{train,val}/<domain>.{bin,idx}`` with a manifest.

    The same call continues one that was stopped, and adds files that have come since. What is written does not depend
    on the number of workers or nodes.

    Args:
        source: a folder, a file, or a data set of the hub; see ``find_sources``.
        tokenizer_dir: folder with the reference's tokenizer.
        out_dir: folder to make or to add to.
        num_workers: processes; the cores of this machine when None.
        node_rank: which share of the work is done, of ``num_nodes``; a launcher's when both are None. With more than
            one node a last call with ``num_nodes=1`` joins the shares.
        num_nodes: number of shares.
        dry_run: print the plan and stop.
        **options: see ``PrepareOptions``.

    Raises:
        UserError: bad input; ``out_dir`` stays as it was.
    """
    chosen = PrepareOptions(**options)
    rank, nodes = share(node_rank, num_nodes)
    if num_workers is not None and num_workers < 1:
        raise UserError(f"--num_workers is {num_workers}; give at least 1")
    work = work_folder(out_dir)
    if not dry_run:
        work.restore()
    preparation = _plan(str(source), tokenizer_dir, out_dir, chosen)
    work.agree(preparation.plan)
    _announce(preparation, tokenizer_dir, out_dir, chosen)
    done = sum(map(work.is_done, preparation.jobs))
    if done or nodes > 1:
        share_of = f", of which node {rank} of {nodes} does {len(preparation.jobs[rank::nodes])}" if nodes > 1 else ""
        print(f"        {len(preparation.jobs)} parts{share_of}; {done} are there already", file=sys.stderr)
    if dry_run:
        return
    start = time.monotonic()
    with stop_at_once(), locked(work, rank, nodes):
        if preparation.existing and not preparation.sources:
            print(f"{out_dir} holds all of it already", file=sys.stderr)
            work.remove()  # left where the last call was killed after all was done
            return
        try:
            thresholds = _fix_thresholds(preparation, work, tokenizer_dir, chosen)
            context = PartsContext(work.parts, tokenizer_dir, preparation.plan["dtype"], chosen, thresholds)
            _make_parts(preparation.jobs[rank::nodes], work, context, num_workers or default_workers())
            if nodes > 1:
                _report_share(preparation.jobs, work, rank, nodes)
                return
            finish(
                work,
                preparation.sources,
                preparation.jobs,
                preparation.existing,
                preparation.quotas,
                chosen,
                preparation.plan,
                start,
            )
        except (KeyboardInterrupt, SystemExit, UserError):
            if any(map(work.is_done, preparation.jobs)):
                print(f"inheritune: finished parts are kept in {work.path}; the same command goes on", file=sys.stderr)
            raise


def _plan(source: str, tokenizer_dir: Path, out_dir: Path, options: PrepareOptions) -> _Preparation:
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
    plan = {"tokenizer": described, "dtype": dtype, "options": options.record()}
    existing = open_existing(out_dir, plan, sources)
    new = existing.new_sources if existing else sources
    quotas = quotas_of(options, sorted({file.domain for file in sources}))
    return _Preparation(new, existing, plan_jobs(new, options), quotas, plan)


def _announce(preparation: _Preparation, tokenizer_dir: Path, out_dir: Path, options: PrepareOptions) -> None:
    sources, plan = preparation.sources, preparation.plan
    domains = sorted({file.domain for file in sources})
    kinds = [format_of(file.name, options) for file in sources]
    text_bytes = sum(file.bytes * kind.text_share for file, kind in zip(sources, kinds, strict=True) if kind)
    tokens = text_bytes / _BYTES_A_TOKEN
    if options.max_tokens is not None:
        tokens = min(tokens, options.max_tokens)
    size = tokens * {"uint16": 2, "int32": 4}[plan["dtype"]]
    added = f", beside {len(preparation.existing.packed_sources)} packed before" if preparation.existing else ""
    print(
        f"prepare {sum(file.bytes for file in sources):,} bytes in {len(sources)} files{added}, "
        f"{len(domains)} domains ({', '.join(domains)})\n"
        f"        with {tokenizer_dir / plan['tokenizer']['file']} ({plan['tokenizer']['vocab_size']:,} ids, "
        f"{plan['dtype']}), {options.val_fraction:.2%} for validation\n"
        f"        to {out_dir}, about {tokens / 1e6:,.1f}M tokens, {size / 1e6:,.1f} MB",
        file=sys.stderr,
    )
    for quota in preparation.quotas:
        print(f"        {quota.tokens:,} tokens of {', '.join(quota.domains)}, drawn at random", file=sys.stderr)
    if options.drop_duplicates:
        print("        without exact duplicates: 40 bytes of memory a document while joining", file=sys.stderr)


def _fix_thresholds(
    preparation: _Preparation, work: WorkFolder, tokenizer_dir: Path, options: PrepareOptions
) -> dict[str, int] | None:
    """Estimate a subset's thresholds, once for all calls and nodes."""
    fixed = work.read_plan()
    if fixed is None:
        thresholds = None
        if preparation.quotas:
            print("inheritune: estimating how many tokens the corpus has", file=sys.stderr, flush=True)
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


def _report_share(jobs: Sequence[Job], work: WorkFolder, rank: int, nodes: int) -> None:
    done = sum(map(work.is_done, jobs))
    print(
        f"node {rank} of {nodes} is done; {done} of {len(jobs)} parts are there. "
        "When every node is done, the same command with --num_nodes 1 checks and joins them"
    )
