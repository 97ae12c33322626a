"""What the manifest says of a preparation's sources and domains."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inheritune_lit.data.formats.report import ReadReport, check_broken
from inheritune_lit.data.merge_shards import Joined, Segment
from inheritune_lit.data.packed import SPLITS
from inheritune_lit.data.sources import SourceFile

COUNTS = {"rows": "rows", "empty_rows": "empty", "broken_rows": "broken", "long_rows": "too_long"}
"""Names in the manifest of what ``ReadReport`` counts."""


@dataclass
class SourceRecord:
    """A source that has been read.

    Attributes:
        source: the file.
        sha256: of its content.
        report: what was met.
    """

    source: SourceFile
    sha256: str
    report: ReadReport


def gather_sources(sources: Sequence[SourceFile], pieces: Sequence[Mapping[str, Any]]) -> dict[str, SourceRecord]:
    """Records by name of the sources that the pieces were cut from.

    Raises:
        UserError: more of a source's rows are broken than is tolerated.
    """
    by_name = {source.name: source for source in sources}
    records: dict[str, SourceRecord] = {}
    for piece in pieces:
        report = ReadReport.from_record(piece["report"])
        record = records.get(piece["source"])
        if record is None:
            records[piece["source"]] = SourceRecord(by_name[piece["source"]], piece["sha256"], report)
        else:
            record.report.add(report)
    for record in records.values():
        check_broken(record.source.path, record.report)
    return records


def new_segments(pieces: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], list[Segment]]:
    """Documents in part folders, by split and domain."""
    segments: dict[tuple[str, str], list[Segment]] = {}
    ends: dict[Path, tuple[int, int]] = {}
    for piece in pieces:
        for domain, counts in piece["domains"].items():
            for split, count in counts.items():
                prefix = piece["folder"] / split / domain
                segment = _next_segment(prefix, piece["source"], count, ends)
                segments.setdefault((split, domain), []).append(segment)
    return segments


def packed_segments(folder: Path, manifest: Mapping[str, Any]) -> dict[tuple[str, str], list[Segment]]:
    """Documents packed before, by split and domain."""
    segments: dict[tuple[str, str], list[Segment]] = {}
    ends: dict[Path, tuple[int, int]] = {}
    for domain, record in manifest["domains"].items():
        for source in record["sources"]:
            for split in SPLITS:
                if source[split]["documents"]:
                    segment = _next_segment(folder / split / domain, source["name"], source[split], ends)
                    segments.setdefault((split, domain), []).append(segment)
    return segments


def _next_segment(prefix: Path, source: str, count: Mapping[str, int], ends: dict[Path, tuple[int, int]]) -> Segment:
    documents, tokens = ends.get(prefix, (0, 0))
    ends[prefix] = documents + count["documents"], tokens + count["tokens"]
    return Segment(prefix, source, documents, count["documents"], tokens, count["tokens"])


def source_records(read: Mapping[str, SourceRecord], packed: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The manifest's ``sources``, in the order of their names.

    Args:
        read: sources read now.
        packed: those of the former manifest.
    """
    records: list[Mapping[str, Any]] = [
        {
            "name": name,
            "path": record.source.path,
            "bytes": record.source.bytes,
            "version": record.source.version,
            "sha256": record.sha256,
            "domain": record.source.domain,
            **{key: getattr(record.report, count) for key, count in COUNTS.items()},
        }
        for name, record in read.items()
    ]
    return sorted([dict(record) for record in (*records, *packed)], key=lambda record: record["name"])


def domain_records(
    sources: Sequence[Mapping[str, Any]], joined: Mapping[tuple[str, str], Joined], by_rows: bool
) -> dict[str, dict[str, Any]]:
    """The manifest's ``domains``.

    Args:
        sources: the manifest's ``sources``.
        joined: what was written, by split and domain.
        by_rows: rows name their domains, so that rows left out belong to none.
    """
    nothing = {"documents": 0, "tokens": 0}
    names = {domain for _, domain in joined}
    if not by_rows:
        names |= {source["domain"] for source in sources}
    records = {}
    for domain in sorted(names):
        pairs = {split: joined.get((split, domain)) for split in SPLITS}
        counts = {split: pair.counts if pair else {} for split, pair in pairs.items()}
        own = [
            source
            for source in sources
            if (any(source["name"] in count for count in counts.values()) if by_rows else source["domain"] == domain)
        ]
        record: dict[str, Any] = {
            "sources": [
                {name: source[name] for name in ("path", "name", "bytes", "sha256")}
                | {split: counts[split].get(source["name"], nothing) for split in SPLITS}
                for source in own
            ]
        }
        if not by_rows:
            record |= {name: sum(source[name] for source in own) for name in COUNTS}
        records[domain] = record | {split: pair.total() if pair else nothing for split, pair in pairs.items()}
    return records
