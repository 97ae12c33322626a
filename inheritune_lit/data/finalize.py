"""Packed data that new files are added to."""

import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inheritune_lit.data.args import PrepareArgs, differing_setting
from inheritune_lit.data.formats.report import first_broken
from inheritune_lit.data.jobs import Job
from inheritune_lit.data.merge_shards import Joined, Segment, join_segments
from inheritune_lit.data.packed import SPLITS
from inheritune_lit.data.records import (
    SourceRecord,
    domain_records,
    gather_sources,
    new_segments,
    packed_segments,
    source_records,
)
from inheritune_lit.data.sources import SCHEME, SourceFile
from inheritune_lit.data.subset import Quota, select
from inheritune_lit.data.workdir import WorkFolder
from inheritune_lit.errors import UserError
from inheritune_lit.io.folders import check_vacant, explain_full_disk
from inheritune_lit.io.manifest import read_manifest, sha256_file, write_manifest
from inheritune_lit.io.progress import Progress

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Existing:
    """Packed data and what is new beside it.

    Attributes:
        folder: the packed data.
        manifest: its manifest.
        packed_sources: the manifest's records of the sources in it.
        new_sources: sources that are not in it.
    """

    folder: Path
    manifest: dict[str, Any]
    packed_sources: list[dict[str, Any]]
    new_sources: list[SourceFile]


def open_existing(out_dir: Path, plan: Mapping[str, Any], sources: Sequence[SourceFile]) -> Existing | None:
    """Packed data at ``out_dir``, or None where nothing is there.

    Raises:
        UserError: something else is there; or it was made with another tokenizer or other options; or one of its
            sources has changed or is gone; or it is a subset, which more files would change.
    """
    manifest = read_manifest(out_dir) if out_dir.is_dir() else None
    if manifest is None or manifest.get("kind") != "packed_data" or "sources" not in manifest:
        check_vacant(out_dir)
        return None
    if manifest["tokenizer"]["sha256"] != plan["tokenizer"]["sha256"]:
        raise UserError(f"{out_dir} was made with another tokenizer; give another --out_dir or remove it")
    if difference := differing_setting(manifest["options"], plan["options"]):
        raise UserError(f"{out_dir} was made with other options: {difference}; give another --out_dir or remove it")
    files = {file.name: file for file in sources}
    for record in manifest["sources"]:
        _check_source(out_dir, record, files.get(record["name"]))
    packed = {record["name"] for record in manifest["sources"]}
    new = [file for file in sources if file.name not in packed]
    if new and plan["options"].get("max_tokens") is not None:
        raise UserError(
            f"{out_dir} is a random subset of {len(packed)} files, which {new[0].path} would change; "
            "give another --out_dir"
        )
    return Existing(out_dir, manifest, manifest["sources"], new)


def _check_source(out_dir: Path, record: Mapping[str, Any], file: SourceFile | None) -> None:
    advice = "give another --out_dir, or put the former file back"
    if file is None:
        raise UserError(f"{record['path']} is in {out_dir} and no longer in the source; {advice}")
    if file.version == record["version"] and file.bytes == record["bytes"]:
        return
    # A copy has another time stamp; only the content counts.
    local = not file.path.startswith(SCHEME)
    if not local or file.bytes != record["bytes"] or sha256_file(Path(file.path)) != record["sha256"]:
        raise UserError(f"{file.path} has changed since {out_dir} was made; {advice}")


_WARNINGS = 10


def finish(
    work: WorkFolder,
    sources: Sequence[SourceFile],
    jobs: list[Job],
    existing: Existing | None,
    quotas: Sequence[Quota],
    options: PrepareArgs,
    plan: Mapping[str, Any],
) -> dict[str, dict[str, Any]]:
    """Join all parts into the output folder and return what is in it by domain, as the manifest says.

    Args:
        work: finished parts of all jobs.
        sources: what the jobs read.
        jobs: in the order of the documents.
        existing: packed data that the documents are added to.
        quotas: of a subset.
        options: what decides the result.
        plan: the manifest's ``tokenizer``, ``dtype`` and ``options``.

    Raises:
        UserError: too many broken rows, a split without a document, or a full disk.
    """
    pieces = work.read_pieces(jobs)
    read = gather_sources(sources, pieces)
    segments = new_segments(pieces)
    if existing:
        for place, packed in packed_segments(existing.folder, existing.manifest).items():
            segments[place] = sorted([*packed, *segments.get(place, [])], key=lambda segment: segment.source)
    _warn_about_rows(list(read.values()))
    listed = source_records(read, existing.packed_sources if existing else [])
    packed_folder = existing.folder if existing else work.out_dir
    selection = select(segments, options.drop_duplicates, quotas, packed_folder, plan["dtype"])
    duplicates_before = existing.manifest["duplicates"] if existing else 0
    with explain_full_disk(work.out_dir), _output(work, existing) as staging:
        joined = _join(staging, plan["dtype"], segments, selection.keep)
        domains = domain_records(listed, joined, by_rows=options.domain_field is not None)
        _check_filled(work, domains, sum(source["rows"] for source in listed))
        record = {
            **{name: plan[name] for name in ("tokenizer", "dtype")},
            "max_token_id": max(pair.max_token_id for pair in joined.values()),
            "options": plan["options"],
            "domains": domains,
            "sources": listed,
            "duplicates": duplicates_before + selection.duplicates,
            "files": {
                f"{split}/{domain}.{ending}": {"bytes": size, "sha256": sha256}
                for (split, domain), pair in sorted(joined.items())
                for ending, (size, sha256) in pair.files.items()
            },
        }
        write_manifest(staging, "packed_data", record)
    work.remove()
    _warn_about_quotas(selection.short)
    return domains


def _join(
    staging: Path,
    dtype: str,
    segments: Mapping[tuple[str, str], Sequence[Segment]],
    keep: Mapping[tuple[str, str], list] | None,
) -> dict[tuple[str, str], Joined]:
    joined = {}
    for split in SPLITS:
        (staging / split).mkdir()
    tokens = sum(part.tokens for parts in segments.values() for part in parts)
    with Progress("join", tokens, "token") as progress:
        for place, parts in sorted(segments.items()):
            split, domain = place
            kept = keep[place] if keep else None
            joined[place] = join_segments(staging / split / domain, dtype, parts, kept, progress.update)
    return joined


@contextmanager
def _output(work: WorkFolder, existing: Existing | None) -> Iterator[Path]:
    """A staging folder that becomes the output; a former output is replaced."""
    # Inside the work folder, where the next call finds and removes it if this one is killed.
    staging = work.path / f"output.tmp-{os.getpid()}"
    staging.mkdir()
    try:
        yield staging
        if existing:
            # Two renames; the next call mends it if this one is killed between them.
            os.replace(existing.folder, work.replaced)
        else:
            check_vacant(work.out_dir)
        try:
            os.replace(staging, work.out_dir)
        except OSError:
            check_vacant(work.out_dir)  # another process may have taken the name since
            raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _check_filled(work: WorkFolder, domains: Mapping[str, Mapping[str, Any]], rows: int) -> None:
    """A corpus must fill both splits; a domain missing from one is worth a word."""
    for split, advice in (("train", "give more text"), ("val", "give more text or a larger --val_fraction")):
        if not sum(record[split]["documents"] for record in domains.values()):
            work.remove()  # with other options or more text, little of it would be of use
            raise UserError(f"no document of {rows} rows is in the {split} split; {advice}")
    for split in SPLITS:
        if bare := [domain for domain, record in domains.items() if not record[split]["documents"]]:
            logger.warning(f"inheritune: warning: no {split} document in {', '.join(bare)}")


def _warn_about_rows(records: Sequence[SourceRecord]) -> None:
    broken = [record for record in records if record.report.broken]
    for record in broken[:_WARNINGS]:
        logger.warning(
            f"inheritune: warning: {record.report.broken} of {record.report.rows} rows of {record.source.path} left "
            f"out, first {first_broken(record.source.path, record.report)}"
        )
    if len(broken) > _WARNINGS:
        logger.warning(f"inheritune: warning: broken rows in {len(broken) - _WARNINGS} more files")
    for record in [record for record in records if record.report.too_long][:_WARNINGS]:
        logger.warning(
            f"inheritune: warning: {record.report.too_long} of {record.report.rows} rows of {record.source.path} left "
            "out: longer than --max_document_bytes, or than 8 MB without a place to cut"
        )


def _warn_about_quotas(short: Sequence[tuple[Quota, int]]) -> None:
    for quota, tokens in short:
        logger.warning(
            f"inheritune: warning: {', '.join(quota.domains)} gave only {tokens:,} of {quota.tokens:,} tokens: "
            "that is all, or, with --drop_duplicates, duplicates are many; give a larger --max_tokens then"
        )
