"""The end of a preparation: all shards merged into the output folder, with its manifest."""

import hashlib
import logging
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from inheritune_lit.data.documents import ROW_COUNTS, ReadReport
from inheritune_lit.data.manifest import SPLITS, Count, PackedDomain, PackedFile, PackedManifest, PackedSource, Share
from inheritune_lit.data.megatron import DocumentSpan, beside, consecutive_spans, write_index
from inheritune_lit.data.plan import PreparePlan, WorkDir
from inheritune_lit.data.shards import DONE, RangeRecord
from inheritune_lit.data.subset import choose_documents
from inheritune_lit.errors import UserError
from inheritune_lit.io.folders import check_vacant, explain_full_disk
from inheritune_lit.io.manifest import sha256_file, write_manifest
from inheritune_lit.io.progress import Progress
from inheritune_lit.io.reading import parse_json
from inheritune_lit.io.records import to_record

logger = logging.getLogger(__name__)

_WARNINGS = 10
_COPY_BYTES = 1 << 22


def finalize(workdir: WorkDir, plan: PreparePlan) -> dict[str, PackedDomain]:
    """Merges all shards of a plan into the output, beside what was packed before, and removes the workdir.

    Returns what the output holds by domain. Too many broken rows, or a split without a document, are a ``UserError``.
    """
    settings, before, out_dir = plan.settings, plan.packed_before, workdir.out_dir
    folders = [workdir.shards / shard.id for shard in plan.shards]
    records = [(folder, record) for folder in folders for record in _read_records(folder / DONE)]
    read = _read_sources(plan, [record for _, record in records])
    packed_sources = before.sources if before else []
    sources = sorted([*read, *packed_sources], key=lambda source: source.name)
    packed_spans = consecutive_spans(
        (out_dir / split / name, share.name, share[split])
        for name, domain in (before.domains if before else {}).items()
        for share in domain.sources
        for split in SPLITS
        if share[split].documents
    )
    new_spans = consecutive_spans(
        (folder / split / domain, record.source, count)
        for folder, record in records
        for domain, by_split in record.counts.items()
        for split, count in by_split.items()
    )
    spans = sorted([*packed_spans, *new_spans], key=lambda span: (span.place, span.source))
    duplicates, short = choose_documents(spans, plan.args.drop_duplicates, plan.quotas, out_dir, settings.dtype)
    domains = _domains(sources, spans, by_rows=plan.args.domain_field is not None)
    _check_filled(workdir, domains, sum(source.rows for source in sources))
    with explain_full_disk(out_dir):
        staging = workdir.path / f"output.tmp-{os.getpid()}"  # a leftover of the workdir, where this call fails
        staging.mkdir()
        max_token_id = 0
        files: dict[str, PackedFile] = {}
        for split in SPLITS:
            (staging / split).mkdir()
        with Progress("merge shards", sum(span.size.tokens for span in spans), "token") as progress:
            for (split, domain), own in groupby(spans, key=lambda span: span.place):
                prefix = staging / split / domain
                largest, pair = _merge_spans(prefix, settings.dtype, list(own), progress.update)
                max_token_id = max(max_token_id, largest)
                files |= {f"{split}/{domain}.{ending}": file for ending, file in pair.items()}
        duplicates += before.duplicates if before else 0
        described = settings.tokenizer, settings.dtype, settings.options
        manifest = PackedManifest(*described, max_token_id, domains, sources, duplicates, files)
        write_manifest(staging, "packed_data", asdict(manifest))
        _put_in_place(staging, workdir, replaces=before is not None)
    workdir.remove()
    for quota, tokens in short:
        logger.warning(
            f"inheritune: warning: {', '.join(quota.domains)} gave only {tokens:,} of {quota.tokens:,} tokens: "
            "that is all, or, with --drop_duplicates, duplicates are many; give a larger --max_tokens then"
        )
    return domains


def _read_records(path: Path) -> list[RangeRecord]:
    what, advice = "a shard's record", f"remove {path.parent}"
    return to_record(parse_json(path.read_bytes(), path, what, advice), list[RangeRecord], path, what, advice)


def _read_sources(plan: PreparePlan, records: Sequence[RangeRecord]) -> list[PackedSource]:
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
    for warning in warnings:
        logger.warning(f"inheritune: warning: {warning}")
    rows = {name: report.counts() for name, report in reports.items()}
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
        rows: dict[str, Any] = {}
        if not by_rows:
            rows = {count: sum(getattr(source, count) for source in own) for count in ROW_COUNTS}
        train, val = (sum((share[split] for share in shares), Count()) for split in SPLITS)
        domains[name] = PackedDomain(sources=shares, train=train, val=val, **rows)
    return domains


def _merge_spans(
    prefix: Path, dtype: str, spans: Sequence[DocumentSpan], report: Callable[[int], None]
) -> tuple[int, dict[str, PackedFile]]:
    """Writes the kept documents of spans as ``prefix.bin`` and ``prefix.idx``; nothing where there is none.

    ``report`` is called with each span's tokens when it is done. Returns the largest token id, and the files by ending.
    """
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
    write_index(prefix, dtype, (lengths for span in spans for lengths in span.kept_lengths()), documents)
    index = beside(prefix, "idx")
    index_file = PackedFile(index.stat().st_size, sha256_file(index))
    return max_token_id, {"bin": PackedFile(size, digest.hexdigest()), "idx": index_file}


def _chunks(file: BinaryIO, start: int, size: int) -> Iterator[bytes]:
    file.seek(start)
    while size:
        chunk = file.read(min(size, _COPY_BYTES))
        if not chunk:
            raise OSError(f"{file.name} ends too early")
        size -= len(chunk)
        yield chunk


def _put_in_place(staging: Path, workdir: WorkDir, replaces: bool) -> None:
    """Makes a staging folder the output, or lets it replace the output."""
    if replaces:
        # Two renames; if this call is killed between them, the next one restores the output.
        os.replace(workdir.out_dir, workdir.replaced)
    else:
        check_vacant(workdir.out_dir)
    try:
        os.replace(staging, workdir.out_dir)
    except OSError:
        check_vacant(workdir.out_dir)  # another process may have taken the name since
        raise


def _check_filled(workdir: WorkDir, domains: Mapping[str, PackedDomain], rows: int) -> None:
    """Refuses a corpus that does not fill both splits; warns about a domain that is missing from one."""
    for split, advice in (("train", "give more text"), ("val", "give more text or a larger --val_fraction")):
        bare = [name for name, domain in domains.items() if not domain[split].documents]
        if len(bare) == len(domains):
            workdir.remove()  # with other options or more text, little of it would be of use
            raise UserError(f"no document of {rows} rows is in the {split} split; {advice}")
        if bare:
            logger.warning(f"inheritune: warning: no {split} document in {', '.join(bare)}")
