"""``inheritune prepare``: text into packed tokens."""

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from inheritune_lit.checkpoint.manifest import sha256_file, write_manifest
from inheritune_lit.checkpoint.output import check_vacant, new_folder
from inheritune_lit.data.corpus import ReadReport, find_domains, read_documents
from inheritune_lit.data.megatron import DocumentWriter
from inheritune_lit.data.packed import SPLITS
from inheritune_lit.data.split import is_validation
from inheritune_lit.errors import UserError
from inheritune_lit.progress import Progress
from inheritune_lit.tokenizer import Tokenizer

# Enough text to keep every core busy with one call of the tokenizer, and little enough to bound memory.
_BATCH_CHARACTERS = 4_000_000


def prepare(
    source: Path,
    tokenizer_dir: Path,
    out_dir: Path,
    *,
    val_fraction: float = 0.01,
    end_of_document: bool = True,
    dry_run: bool = False,
) -> None:
    """Tokenise a corpus into ``out_dir/{train,val}/<domain>.{bin,idx}`` with a manifest.

    Args:
        source: folder of ``<domain>.jsonl`` files with a ``text`` field, or one such file.
        tokenizer_dir: folder with the reference's tokenizer.
        out_dir: folder to make.
        val_fraction: share of documents for validation, in (0, 1); which ones is fixed by their text.
        end_of_document: write the EOS token after each document.
        dry_run: print the plan and stop.

    Raises:
        UserError: bad input; nothing is left behind.
    """
    if not 0 < val_fraction < 1:
        raise UserError(f"--val_fraction is {val_fraction}; give a number between 0 and 1, such as 0.01")
    domains, tokenizer = find_domains(source), Tokenizer(tokenizer_dir)
    if end_of_document and tokenizer.eos_id is None:
        raise UserError(f"{tokenizer.path} defines no EOS token; name one there or give --end_of_document false")
    check_vacant(out_dir)
    dtype = "uint16" if tokenizer.vocab_size <= 2**16 else "int32"
    total_bytes = sum(file.stat().st_size for file in domains.values())
    print(
        f"prepare {total_bytes:,} bytes of text in {len(domains)} domains ({', '.join(domains)})\n"
        f"        with {tokenizer.path} ({tokenizer.vocab_size:,} ids, {dtype}), {val_fraction:.2%} for validation\n"
        f"        to {out_dir}, about {total_bytes * _expected_bytes_per_byte(dtype) / 1e6:,.0f} MB",
        file=sys.stderr,
    )
    if dry_run:
        return
    start = time.monotonic()
    with new_folder(out_dir) as staging:
        for split in SPLITS:
            (staging / split).mkdir()
        records, max_token_id = {}, 0
        with Progress("prepare", total_bytes, "B") as progress:
            for domain, file in domains.items():
                records[domain], domain_max = _pack_domain(
                    domain, file, tokenizer, staging, dtype, val_fraction, end_of_document, progress
                )
                max_token_id = max(max_token_id, domain_max)
        _check_filled(source, records)
        write_manifest(
            staging,
            "packed_data",
            {
                "tokenizer": {
                    "file": tokenizer.path.name,
                    "sha256": tokenizer.sha256(),
                    "vocab_size": tokenizer.vocab_size,
                    "eos_id": tokenizer.eos_id,
                },
                "dtype": dtype,
                "max_token_id": max_token_id,
                "options": {"val_fraction": val_fraction, "end_of_document": end_of_document},
                "domains": records,
            },
        )
    _print_summary(records, time.monotonic() - start)


def _expected_bytes_per_byte(dtype: str) -> float:
    return {"uint16": 2, "int32": 4}[dtype] / 3.5  # English and code have 3 to 4 bytes a token


def _pack_domain(
    domain: str,
    file: Path,
    tokenizer: Tokenizer,
    folder: Path,
    dtype: str,
    val_fraction: float,
    end_of_document: bool,
    progress: Progress,
) -> tuple[dict[str, Any], int]:
    """Write one domain's files; return its record for the manifest and its largest token id."""
    report, max_token_id, seen_bytes, start = ReadReport(), 0, 0, time.monotonic()
    ending = [tokenizer.eos_id] if end_of_document else []
    with ExitStack() as stack:
        writers = {split: stack.enter_context(DocumentWriter(folder / split / domain, dtype)) for split in SPLITS}
        for texts in _batches(read_documents(file, report)):
            for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
                if not ids:
                    report.empty += 1
                    continue
                max_token_id = max(max_token_id, max(ids), *ending)
                writers["val" if is_validation(text, val_fraction) else "train"].add([*ids, *ending])
            documents = sum(writer.documents for writer in writers.values())
            tokens = sum(writer.tokens for writer in writers.values())
            rate = tokens / (time.monotonic() - start)
            note = f"{domain}: {documents:,} documents, {tokens:,} tokens, {rate:,.0f} tokens/s"
            progress.update(report.bytes_read - seen_bytes, note)
            seen_bytes = report.bytes_read
    if report.broken:
        print(
            f"inheritune: warning: {report.broken} of {report.rows} rows of {file} left out, "
            f"first {report.first_broken}",
            file=sys.stderr,
        )
    record = {
        "sources": [{"path": str(file), "bytes": file.stat().st_size, "sha256": sha256_file(file)}],
        "rows": report.rows,
        "empty_rows": report.empty,
        "broken_rows": report.broken,
    }
    for split, writer in writers.items():
        record[split] = {"documents": writer.documents, "tokens": writer.tokens}
    return record, max_token_id


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    characters = 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _check_filled(source: Path, records: dict[str, dict[str, Any]]) -> None:
    """A corpus must fill both splits; a domain missing from one is worth a word."""
    for split, advice in (("train", "give more text"), ("val", "give more text or a larger --val_fraction")):
        if not sum(record[split]["documents"] for record in records.values()):
            rows = sum(record["rows"] for record in records.values())
            raise UserError(f"no document of {source} ({rows} rows) is in the {split} split; {advice}")
    for split in SPLITS:
        if bare := [domain for domain, record in records.items() if not record[split]["documents"]]:
            print(f"inheritune: warning: no {split} document in {', '.join(bare)}", file=sys.stderr)


def _print_summary(records: dict[str, dict[str, Any]], seconds: float) -> None:
    counts = f"{'documents':>12} {'tokens':>15} {'val documents':>14} {'val tokens':>12}"
    print(f"{'domain':<20} {counts} {'empty rows':>11} {'broken rows':>12}")
    for domain, record in records.items():
        train, val = record["train"], record["val"]
        counts = f"{train['documents']:>12,} {train['tokens']:>15,} {val['documents']:>14,} {val['tokens']:>12,}"
        print(f"{domain:<20} {counts} {record['empty_rows']:>11,} {record['broken_rows']:>12,}")
    tokens = sum(record[split]["tokens"] for record in records.values() for split in SPLITS)
    print(f"{tokens:,} tokens in {seconds:.1f} s, {tokens / seconds:,.0f} tokens/s")
