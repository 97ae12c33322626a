"""The end of a preparation: all shards merged into the output folder, with its manifest."""

import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from inheritune_lit.data.documents import ROW_COUNTS, ReadReport
from inheritune_lit.data.merge_shards import DocumentSpan, MergedFiles, consecutive_spans, merge_shards
from inheritune_lit.data.packed import SPLITS
from inheritune_lit.data.plan import PreparePlan
from inheritune_lit.data.shards import RangeRecord, read_records
from inheritune_lit.data.sources import SourceFile
from inheritune_lit.data.subset import Quota, choose_documents
from inheritune_lit.data.workdir import WorkDir
from inheritune_lit.errors import UserError
from inheritune_lit.io.folders import check_vacant, explain_full_disk
from inheritune_lit.io.manifest import write_manifest
from inheritune_lit.io.progress import Progress

logger = logging.getLogger(__name__)

_WARNINGS = 10
_Place = tuple[str, str]  # split and domain


@dataclass(frozen=True)
class _ReadSource:
    """A source file that has been read: its content's hash, and which rows were met."""

    file: SourceFile
    sha256: str
    report: ReadReport


def finalize(workdir: WorkDir, plan: PreparePlan) -> dict[str, dict[str, Any]]:
    """Merges all shards into the output folder, appends to what was packed before, and removes the workdir.

    Args:
        workdir: has all shards of the plan.
        plan: what was prepared.

    Returns:
        What the output holds by domain, as the manifest says.

    Raises:
        UserError: too many broken rows, a split without a document, or a full disk.
    """
    records = [
        (workdir.shards / shard.id, record)
        for shard in plan.shards
        for record in read_records(workdir.shards / shard.id)
    ]
    read = _read_sources(plan.sources, [record for _, record in records])
    _warn_about_rows(read)
    before, dtype = plan.packed_before, plan.settings["dtype"]
    spans = _spans(
        (folder / split / domain, record.source, counts)
        for folder, record in records
        for domain, by_split in record.counts.items()
        for split, counts in by_split.items()
    )
    if before:
        packed = _spans(
            (plan.out_dir / split / domain, source["name"], source[split])
            for domain, content in before["domains"].items()
            for source in content["sources"]
            for split in SPLITS
            if source[split]["documents"]
        )
        for place, own in packed.items():
            spans[place] = sorted([*own, *spans.get(place, [])], key=lambda span: span.source)
    sources = sorted(
        [*map(_source_entry, read), *(before["sources"] if before else ())], key=lambda entry: entry["name"]
    )
    chosen = choose_documents(spans, plan.args.drop_duplicates, plan.quotas, plan.out_dir, dtype)
    with explain_full_disk(plan.out_dir), _new_output(workdir, replaces=before is not None) as staging:
        merged = _merge(staging, dtype, spans, chosen.keep)
        domains = _domain_entries(sources, merged, by_rows=plan.args.domain_field is not None)
        _check_filled(workdir, domains, sum(source["rows"] for source in sources))
        manifest = {
            "tokenizer": plan.settings["tokenizer"],
            "dtype": dtype,
            "max_token_id": max(files.max_token_id for files in merged.values()),
            "options": plan.settings["options"],
            "domains": domains,
            "sources": sources,
            "duplicates": chosen.duplicates + (before["duplicates"] if before else 0),
            "files": {
                f"{split}/{domain}.{ending}": described
                for (split, domain), files in sorted(merged.items())
                for ending, described in files.files.items()
            },
        }
        write_manifest(staging, "packed_data", manifest)
    workdir.remove()
    _warn_about_quotas(chosen.short)
    return domains


def _read_sources(files: Sequence[SourceFile], records: Sequence[RangeRecord]) -> list[_ReadSource]:
    """Returns the sources that the ranges were cut from.

    Raises:
        UserError: more of a source's rows are broken than is tolerated.
    """
    by_name = {file.name: file for file in files}
    read: dict[str, _ReadSource] = {}
    for record in records:
        if record.source in read:
            read[record.source].report.add(record.report)
        else:
            assert record.sha256 is not None, "the first range hashes the file"
            read[record.source] = _ReadSource(by_name[record.source], record.sha256, replace(record.report))
    for source in read.values():
        source.report.check(source.file.path)
    return list(read.values())


def _spans(counts: Iterable[tuple[Path, str, Mapping[str, int]]]) -> dict[_Place, list[DocumentSpan]]:
    """Returns spans by split and domain, which their prefixes end with."""
    spans: dict[_Place, list[DocumentSpan]] = {}
    for span in consecutive_spans(counts):
        spans.setdefault((span.prefix.parent.name, span.prefix.name), []).append(span)
    return spans


def _source_entry(source: _ReadSource) -> dict[str, Any]:
    file = source.file
    described = {"name": file.name, "path": file.path, "bytes": file.bytes, "version": file.version}
    return {**described, "sha256": source.sha256, "domain": file.domain, **source.report.counts()}


def _domain_entries(
    sources: Sequence[Mapping[str, Any]], merged: Mapping[_Place, MergedFiles], by_rows: bool
) -> dict[str, dict[str, Any]]:
    """Returns the manifest's ``domains``.

    Args:
        sources: the manifest's ``sources``.
        merged: what was written, by split and domain.
        by_rows: rows name their domains, so that rows left out belong to none.
    """
    nothing = {"documents": 0, "tokens": 0}
    names = {domain for _, domain in merged}
    if not by_rows:
        names |= {source["domain"] for source in sources}
    entries = {}
    for domain in sorted(names):
        files = {split: merged.get((split, domain), MergedFiles({}, 0, {})) for split in SPLITS}
        if by_rows:
            own = [source for source in sources if any(source["name"] in each.counts for each in files.values())]
        else:
            own = [source for source in sources if source["domain"] == domain]
        entry: dict[str, Any] = {
            "sources": [
                {name: source[name] for name in ("path", "name", "bytes", "sha256")}
                | {split: files[split].counts.get(source["name"], nothing) for split in SPLITS}
                for source in own
            ]
        }
        if not by_rows:
            entry |= {name: sum(source[name] for source in own) for name in ROW_COUNTS}
        entries[domain] = entry | {split: files[split].total() for split in SPLITS}
    return entries


def _merge(
    staging: Path, dtype: str, spans: Mapping[_Place, Sequence[DocumentSpan]], keep: Mapping[_Place, list] | None
) -> dict[_Place, MergedFiles]:
    for split in SPLITS:
        (staging / split).mkdir()
    merged = {}
    with Progress("merge shards", sum(span.tokens for own in spans.values() for span in own), "token") as progress:
        for (split, domain), own in sorted(spans.items()):
            kept = keep[split, domain] if keep else None
            merged[split, domain] = merge_shards(staging / split / domain, dtype, own, kept, progress.update)
    return merged


@contextmanager
def _new_output(workdir: WorkDir, replaces: bool) -> Iterator[Path]:
    """Yields a staging folder that becomes the output, or replaces it."""
    # Inside the workdir, where the next call finds and removes it if this one is killed.
    staging, out_dir = workdir.path / f"output.tmp-{os.getpid()}", workdir.out_dir
    staging.mkdir()
    try:
        yield staging
        if replaces:
            # Two renames; if this call is killed between them, the next one restores the output.
            os.replace(out_dir, workdir.replaced)
        else:
            check_vacant(out_dir)
        try:
            os.replace(staging, out_dir)
        except OSError:
            check_vacant(out_dir)  # another process may have taken the name since
            raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _check_filled(workdir: WorkDir, domains: Mapping[str, Mapping[str, Any]], rows: int) -> None:
    """Refuses a corpus that does not fill both splits; warns about a domain that is missing from one."""
    for split, advice in (("train", "give more text"), ("val", "give more text or a larger --val_fraction")):
        if not sum(entry[split]["documents"] for entry in domains.values()):
            workdir.remove()  # with other options or more text, little of it would be of use
            raise UserError(f"no document of {rows} rows is in the {split} split; {advice}")
    for split in SPLITS:
        if bare := [domain for domain, entry in domains.items() if not entry[split]["documents"]]:
            logger.warning(f"inheritune: warning: no {split} document in {', '.join(bare)}")


def _warn_about_rows(read: Sequence[_ReadSource]) -> None:
    broken = [source for source in read if source.report.broken_rows]
    for source in broken[:_WARNINGS]:
        report, path = source.report, source.file.path
        logger.warning(
            f"inheritune: warning: {report.broken_rows} of {report.rows} rows of {path} left out, first "
            f"{report.describe_fault(path)}"
        )
    if len(broken) > _WARNINGS:
        logger.warning(f"inheritune: warning: broken rows in {len(broken) - _WARNINGS} more files")
    for source in [source for source in read if source.report.long_rows][:_WARNINGS]:
        logger.warning(
            f"inheritune: warning: {source.report.long_rows} of {source.report.rows} rows of {source.file.path} left "
            "out: longer than --max_document_bytes, or than 8 MB without a place to cut"
        )


def _warn_about_quotas(short: Sequence[tuple[Quota, int]]) -> None:
    for quota, tokens in short:
        logger.warning(
            f"inheritune: warning: {', '.join(quota.domains)} gave only {tokens:,} of {quota.tokens:,} tokens: "
            "that is all, or, with --drop_duplicates, duplicates are many; give a larger --max_tokens then"
        )
