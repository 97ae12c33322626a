"""One job: source pieces into part files, written aside and renamed when they are whole."""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inheritune_lit.data.args import PrepareArgs
from inheritune_lit.data.encoding import DocumentEncoder
from inheritune_lit.data.formats.report import ReadReport, check_broken
from inheritune_lit.data.formats.table import format_of
from inheritune_lit.data.jobs import Job, Piece
from inheritune_lit.data.megatron import DocumentWriter
from inheritune_lit.data.sources import SCHEME, check_domain, local_copy
from inheritune_lit.data.split import digest_is_validation, sample_key, text_digest
from inheritune_lit.errors import UserError
from inheritune_lit.io.folders import explain_full_disk
from inheritune_lit.io.manifest import sha256_file

DONE = "done.json"
# Enough text to make calls of a tokenizer library worth while, and little enough to bound memory.
_BATCH_CHARACTERS = 1 << 20
_HOPELESS_ROWS = 1000


@dataclass(frozen=True)
class PartsContext:
    """What every job of a preparation shares.

    Attributes:
        folder: where part folders go.
        tokenizer_dir: folder with the tokenizer.
        dtype: "uint16" or "int32".
        options: what decides the result.
        thresholds: a document is kept only where its ``sample_key`` is below its domain's; None keeps all.
    """

    folder: Path
    tokenizer_dir: Path
    dtype: str
    options: PrepareArgs
    thresholds: dict[str, int] | None


@dataclass
class Step:
    """Work done since the last step was reported."""

    bytes: int = 0
    documents: int = 0
    tokens: int = 0


class PartsMaker:
    """Does jobs one after another, keeping the tokenizer and its cache between them.

    Args:
        context: what the jobs share.
        report: told of each step.
    """

    def __init__(self, context: PartsContext, report: Callable[[Step], None]) -> None:
        self.context, self._report = context, report
        self._encoder = DocumentEncoder(context.tokenizer_dir, context.dtype, context.options.parse_special_tokens)
        eos_id = self._encoder.tokenizer.eos_id
        self._ending = b"" if eos_id is None or not context.options.end_of_document else self._encoder.pack([eos_id])

    def make(self, job: Job) -> None:
        """Write the job's part folder, ``<id>/{train,val}/<domain>.{bin,idx}`` and ``<id>/done.json``.

        Raises:
            UserError: a source cannot be read or has changed, or the disk is full; no part folder is left.
        """
        final = self.context.folder / job.id
        staging = final.with_name(f"{job.id}.tmp-{os.getpid()}")
        try:
            with explain_full_disk(self.context.folder):
                shutil.rmtree(staging, ignore_errors=True)
                staging.mkdir(parents=True)
                with ExitStack() as stack:
                    output = _PartOutput(staging, self.context, stack)
                    pieces = [self._read(piece, output, staging) for piece in job.pieces]
                (staging / DONE).write_text(json.dumps({"pieces": pieces}), encoding="utf-8")
                if not final.exists():  # another process may have done the same job
                    os.replace(staging, final)
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def _read(self, piece: Piece, output: "_PartOutput", staging: Path) -> dict[str, Any]:
        source, options = piece.source, self.context.options
        kind = format_of(source.name, options)
        assert kind is not None, source
        report, seen = ReadReport(), 0
        output.start_piece()
        with local_copy(source.path, staging / "download") as path:
            rows = kind.read(path, piece.start, piece.stop, options, report)
            for batch in _batches(self._kept(rows, piece, report)):
                before = output.documents, output.tokens
                texts = [text for text, _, _ in batch]
                for (_, domain, digest), ids in zip(batch, self._encoder.encode(texts), strict=True):
                    if ids is None:
                        report.too_long += 1
                    elif not ids:
                        report.empty += 1
                    else:
                        output.add(domain, digest, ids + self._ending)
                self._report(Step(report.bytes_read - seen, output.documents - before[0], output.tokens - before[1]))
                seen = report.bytes_read
            sha256 = sha256_file(path) if piece.start == 0 else None
            _check_unchanged(piece, path)
        self._report(Step(bytes=piece.bytes - seen))
        if report.broken > max(_HOPELESS_ROWS, report.rows // 2):
            check_broken(source.path, report)  # do not read a terabyte for the wrong --text_field
        return {
            "source": source.name,
            "start": piece.start,
            "sha256": sha256,
            "report": report.to_record(),
            "domains": output.counts(),
        }

    def _kept(
        self, rows: Iterator[tuple[str, str | None]], piece: Piece, report: ReadReport
    ) -> Iterator[tuple[str, str, bytes]]:
        """Texts worth encoding, with their domains and digests."""
        thresholds, seed = self.context.thresholds, self.context.options.seed
        for text, named_domain in rows:
            if not text or text.isspace():
                report.empty += 1
                continue
            digest = text_digest(text)
            if thresholds is None or sample_key(digest, seed) < thresholds[piece.source.domain]:
                domain = piece.source.domain
                if named_domain is not None:
                    domain = check_domain(named_domain, piece.source.path)
                yield text, domain, digest


class _PartOutput:
    """Files of a job by split and domain, opened when the first document comes."""

    def __init__(self, folder: Path, context: PartsContext, stack: ExitStack) -> None:
        self._folder, self._context, self._stack = folder, context, stack
        self._writers: dict[tuple[str, str], DocumentWriter] = {}
        self._keys: dict[tuple[str, str, str], Any] = {}
        self._before: dict[tuple[str, str], tuple[int, int]] = {}
        self.documents = self.tokens = 0

    def start_piece(self) -> None:
        """Count anew."""
        self._before = {key: (writer.documents, writer.tokens) for key, writer in self._writers.items()}

    def counts(self) -> dict[str, dict[str, dict[str, int]]]:
        """Documents and tokens of the piece by domain and split."""
        counts: dict[str, dict[str, dict[str, int]]] = {}
        for (split, domain), writer in sorted(self._writers.items()):
            documents, tokens = self._before.get((split, domain), (0, 0))
            if writer.documents > documents:
                counts.setdefault(domain, {})[split] = {
                    "documents": writer.documents - documents,
                    "tokens": writer.tokens - tokens,
                }
        return counts

    def add(self, domain: str, digest: bytes, ids: bytes) -> None:
        """Append a document to its split."""
        options = self._context.options
        key = ("val" if digest_is_validation(digest, options.val_fraction) else "train", domain)
        writer = self._writers.get(key) or self._open(key)
        before = writer.tokens
        writer.add_packed(ids)
        self.documents += 1
        self.tokens += writer.tokens - before
        if options.max_tokens is not None:
            self._keys[(*key, "sample")].write(sample_key(digest, options.seed).to_bytes(8, sys.byteorder))
        if options.drop_duplicates:
            self._keys[(*key, "hash")].write(ids_hash(ids))

    def _open(self, key: tuple[str, str]) -> DocumentWriter:
        split, domain = key
        (self._folder / split).mkdir(exist_ok=True)
        prefix = self._folder / split / domain
        writer = self._stack.enter_context(DocumentWriter(prefix, self._context.dtype))
        wanted = {"sample": self._context.options.max_tokens is not None, "hash": self._context.options.drop_duplicates}
        for name in (name for name, needed in wanted.items() if needed):
            self._keys[(*key, name)] = self._stack.enter_context(key_path(prefix, name).open("wb"))
        self._writers[key] = writer
        return writer


def key_path(prefix: Path, name: str) -> Path:
    """File of one number a document beside a part's tokens: "sample" (8 bytes each) or "hash" (16)."""
    return prefix.with_name(f"{prefix.name}.{name}")


def ids_hash(ids: bytes) -> bytes:
    """128-bit hash of a document's token ids; documents with equal ones are duplicates."""
    return hashlib.blake2b(ids, digest_size=16).digest()


def _batches(rows: Iterator[tuple[str, str, bytes]]) -> Iterator[list[tuple[str, str, bytes]]]:
    batch: list[tuple[str, str, bytes]] = []
    characters = 0
    for row in rows:
        batch.append(row)
        characters += len(row[0])
        if characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _check_unchanged(piece: Piece, path: Path) -> None:
    if piece.source.path.startswith(SCHEME):
        return
    status = path.stat()
    if (status.st_size, str(status.st_mtime_ns)) != (piece.source.bytes, piece.source.version):
        raise UserError(f"{path} changed while it was read; run the same command again when it is complete")
