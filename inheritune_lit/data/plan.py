"""What a call of ``inheritune prepare`` has to do, and which documents make up a random subset of a corpus.

Every document has a key, uniform in [0, 2^64), that depends on the seed and its text alone; a subset of q tokens is the
documents with the smallest keys whose lengths add up to at most q. So it is the same for any number of workers, and a
larger q only adds documents. To encode little more than q tokens of a corpus far larger, documents are first dropped by
a threshold on the key that is estimated from a few megabytes of text and chosen somewhat too high.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from inheritune_lit.data.args import PrepareArgs
from inheritune_lit.data.encoding import DocumentEncoder
from inheritune_lit.data.formats import ReadReport, format_of, ids_hash, read_rows
from inheritune_lit.data.manifest import PackedManifest, PackedSettings, TokenizerRecord, find_packed_manifest
from inheritune_lit.data.megatron import DocumentSpan, beside
from inheritune_lit.data.sampler import divide_domains
from inheritune_lit.data.shards import Shard, SourceRange, plan_shards
from inheritune_lit.data.sources import SourceFile, check_distinct, find_sources, local_copy
from inheritune_lit.errors import UserError
from inheritune_lit.io.folders import check_replaceable, check_vacant
from inheritune_lit.io.manifest import sha256_file
from inheritune_lit.tokenizer import Tokenizer

_BYTES_PER_TOKEN = 3.5  # English and code have 3 to 4
_PROBES = 8  # places of a group that are read
_PROBE_CHARACTERS = 1 << 21
_MARGIN = 1.1  # for the error of the estimated tokens per byte
_DUPLICATES_MARGIN = 1.5  # for those and up to a quarter of the tokens in duplicates
_DEVIATIONS = 4  # for the number of tokens that chance lets through
KEYS = 1 << 64


@dataclass(frozen=True)
class Quota:
    """Tokens that some domains give together, in both splits."""

    tokens: int
    domains: tuple[str, ...]


@dataclass(frozen=True)
class PreparePlan:
    """What a call has to do: new source files and their shards, and the output that they are appended to, if any."""

    args: PrepareArgs
    sources: list[SourceFile]
    packed_before: PackedManifest | None
    shards: list[Shard]
    quotas: list[Quota]
    settings: PackedSettings

    def __str__(self) -> str:
        args, tokenizer, dtype = self.args, self.settings.tokenizer, self.settings.dtype
        assert args.tokenizer_dir is not None, "PrepareArgs checks it"
        domains = sorted({file.domain for file in self.sources})
        kinds = ((file, format_of(file.name, args)) for file in self.sources)
        text_bytes = sum(file.bytes * kind.text_share for file, kind in kinds if kind)
        tokens = min(text_bytes / _BYTES_PER_TOKEN, args.max_tokens or text_bytes)
        size = tokens * {"uint16": 2, "int32": 4}[dtype]
        added = f", beside {len(self.packed_before.sources)} packed before" if self.packed_before else ""
        lines = [
            f"prepare {sum(file.bytes for file in self.sources):,} bytes in {len(self.sources)} files{added}, "
            f"{len(domains)} domains ({', '.join(domains)})",
            f"        with {args.tokenizer_dir / tokenizer.file} ({tokenizer.vocab_size:,} ids, {dtype}), "
            f"{args.val_fraction:.2%} for validation",
            f"        to {args.out_dir}, about {tokens / 1e6:,.1f}M tokens, {size / 1e6:,.1f} MB",
        ]
        lines += [f"        {quota.tokens:,} tokens of {', '.join(quota.domains)}, at random" for quota in self.quotas]
        if args.drop_duplicates:
            lines.append("        without exact duplicates: 40 bytes of memory per document while merging")
        return "\n".join(lines)


def make_plan(args: PrepareArgs) -> PreparePlan:
    """Finds source files, refuses what does not fit what is packed already, and cuts the new ones into shards."""
    assert args.source and args.tokenizer_dir and args.out_dir, "PrepareArgs checks it"
    sources, tokenizer = find_sources(args.source, args), Tokenizer(args.tokenizer_dir)
    eos_id, instead = tokenizer.eos_id, "or give --end_of_document false"
    if args.end_of_document and eos_id is None:
        raise UserError(f"{tokenizer.path} defines no EOS token; name one there {instead}")
    if args.end_of_document and eos_id >= tokenizer.vocab_size:
        ids = f"{tokenizer.path.name} has only {tokenizer.vocab_size} ids"
        raise UserError(f"the EOS id of {args.tokenizer_dir} is {eos_id}, {ids}; correct its configuration {instead}")
    settings = PackedSettings(
        TokenizerRecord(tokenizer.path.name, tokenizer.sha256(), tokenizer.vocab_size, tokenizer.eos_id),
        "uint16" if tokenizer.vocab_size <= 2**16 else "int32",
        args.content_settings(),
    )
    before, new = find_packed_manifest(args.out_dir), sources
    if not args.drop_duplicates:
        check_distinct(sources, {source.name: source.sha256 for source in before.sources} if before else {})
    if before is None or not before.sources:
        check_vacant(args.out_dir)
    else:
        check_replaceable(args.out_dir)
        before.check_same(settings, f"{args.out_dir} was made with", "give another --out_dir or remove it")
        new = _new_sources(args.out_dir, before, sources)
        if new and args.max_tokens is not None:
            subset = f"{args.out_dir} is a random subset of {len(before.sources)} files"
            raise UserError(f"{subset}, which {new[0].path} would change; give another --out_dir")
    quotas = quotas_of(args, sorted({file.domain for file in sources}))
    return PreparePlan(args, new, before, plan_shards(new, args), quotas, settings)


def _new_sources(out_dir: Path, manifest: PackedManifest, sources: Sequence[SourceFile]) -> list[SourceFile]:
    """Returns the sources that are not packed yet; one that is packed and has changed or is gone is refused."""
    files = {file.name: file for file in sources}
    advice = "give another --out_dir, or put the former file back"
    for entry in manifest.sources:
        file = files.pop(entry.name, None)
        if file is None:
            raise UserError(f"{entry.path} is in {out_dir} and no longer in the source; {advice}")
        if (file.version, file.bytes) == (entry.version, entry.bytes):
            continue
        # A copy has another time stamp; only the content counts.
        if file.on_hub or file.bytes != entry.bytes or sha256_file(Path(file.path)) != entry.sha256:
            raise UserError(f"{file.path} has changed since {out_dir} was made; {advice}")
    return list(files.values())


def quotas_of(args: PrepareArgs, domains: Sequence[str]) -> list[Quota]:
    """Returns a subset's quotas, none of everything; a mixture that does not fit the domains is a ``UserError``."""
    if args.max_tokens is None:
        return []
    if args.mixture is None:
        return [Quota(args.max_tokens, tuple(sorted(domains)))]
    whole, quotas, left = sum(args.mixture.values()), [], set(domains)
    for name, covered in divide_domains(args.mixture, domains).items():
        if not covered:
            raise UserError(f"--mixture names {name!r}, the corpus has only {', '.join(sorted(domains))}; correct one")
        left -= set(covered)
        quotas.append(Quota(round(args.max_tokens * args.mixture[name] / whole), tuple(sorted(covered))))
    if left:
        raise UserError(f"--mixture leaves out {', '.join(sorted(left))}; give each a part, 0 for none of it")
    return quotas


def estimate_thresholds(
    quotas: Sequence[Quota], ranges: Sequence[SourceRange], encoder: DocumentEncoder, args: PrepareArgs, scratch: Path
) -> dict[str, int]:
    """Returns thresholds on documents' keys by domain that let through somewhat more than the quotas.

    A few megabytes per quota of the ranges, the whole corpus, are encoded, fetched into ``scratch`` from the hub.
    """
    thresholds = {}
    for quota in quotas:
        share = 0.0
        if quota.tokens:
            own = [part for part in ranges if part.source.domain in quota.domains]
            lengths, read = _probe(own, encoder, args, scratch)
            margin = _DUPLICATES_MARGIN if args.drop_duplicates else _MARGIN
            share = keep_share(quota.tokens, lengths, read, sum(part.bytes for part in own), margin)
        thresholds.update(dict.fromkeys(quota.domains, min(KEYS, math.ceil(share * KEYS))))
    return thresholds


def keep_share(tokens: int, lengths: Sequence[int], read: int, total: int, margin: float) -> float:
    """Returns the share of documents to let through so that at least ``tokens`` come, but for very bad luck.

    It is estimated from lengths in ``read`` of ``total`` bytes; there may be ``margin`` times fewer tokens than that.
    """
    if not lengths or (read >= total and sum(lengths) <= tokens):
        return 1.0
    scale = total / read / margin
    expected = scale * sum(lengths)
    # With share p, tokens have mean p * expected and variance below p * scale * sum of squares.
    spread = _DEVIATIONS * math.sqrt(scale * sum(length**2 for length in lengths))
    root = (spread + math.sqrt(spread**2 + 4 * expected * tokens)) / (2 * expected)
    return min(1.0, root**2)


def cut_keys(keys: np.ndarray, lengths: np.ndarray, tokens: int) -> int:
    """Returns the key below which documents, of uint64 keys and lengths in tokens, add up to at most ``tokens``."""
    order = np.argsort(keys, kind="stable")
    fit = int(np.searchsorted(np.cumsum(lengths[order], dtype=np.int64), tokens, side="right"))
    return int(keys[order[fit]]) if fit < len(order) else KEYS


def _probe(
    ranges: Sequence[SourceRange], encoder: DocumentEncoder, args: PrepareArgs, scratch: Path
) -> tuple[list[int], int]:
    """Returns lengths in tokens of some documents from all over the ranges, and the stored bytes they take."""
    ends = np.cumsum([part.bytes for part in ranges])
    places = (np.arange(_PROBES) + 0.5) / _PROBES * ends[-1]
    lengths, read, itemsize = list[int](), 0, np.dtype(encoder.dtype).itemsize
    for number in np.unique(np.searchsorted(ends, places, side="right")).tolist():
        part, report, texts, characters = ranges[number], ReadReport(), [], 0
        with local_copy(part.source, scratch) as path:
            for text, _ in read_rows(path, args, report, part.start, part.stop):
                texts.append(text)
                characters += len(text)
                if characters >= _PROBE_CHARACTERS:
                    break
        lengths += [len(ids) // itemsize + args.end_of_document for ids in encoder.encode(texts) if ids]
        read += report.bytes_read
    return lengths, read


def choose_documents(
    spans: Sequence[DocumentSpan], drop_duplicates: bool, quotas: Sequence[Quota], packed: Path, dtype: str
) -> tuple[int, list[tuple[Quota, int]]]:
    """Sets which documents are kept, in about 40 bytes of memory per document for duplicates and 16 for quotas.

    Of documents with equal token ids one is kept with ``drop_duplicates``: one that was packed before, which is in the
    folder ``packed``, else one for validation, so that none of them is met in training. Returns how many equal an
    earlier one; and the quotas with fewer tokens than wanted though every document is kept, with their tokens.
    """
    duplicates, short = _drop_duplicates(spans, packed, dtype) if drop_duplicates else 0, []
    for quota in quotas:
        own = [span for span in spans if span.place[1] in quota.domains]
        keys = [_read_sidecar(span, "sample", np.dtype("<u8")) for span in own]
        masks = [np.ones(span.size.documents, dtype=bool) if span.keep is None else span.keep for span in own]
        kept_keys = [some[mask] for some, mask in zip(keys, masks, strict=True)]
        lengths = np.concatenate([np.empty(0, dtype=np.int32), *(span.kept_lengths() for span in own)])
        cut = cut_keys(np.concatenate([np.empty(0, dtype=np.uint64), *kept_keys]), lengths, quota.tokens)
        if cut == KEYS and (tokens := int(lengths.sum(dtype=np.int64))) < quota.tokens:
            short.append((quota, tokens))
        for span, some, mask in zip(own, keys, masks, strict=True):
            span.keep = mask & (some <= np.uint64(cut - 1) if cut else False)
    return duplicates, short


def _drop_duplicates(spans: Sequence[DocumentSpan], packed: Path, dtype: str) -> int:
    """Clears the mask of every document that equals an earlier one; returns how many there are."""
    if not spans:
        return 0
    in_order = sorted(spans, key=lambda span: (packed not in span.prefix.parents, span.place[0] != "val", span.place))
    hashes = np.concatenate([_hashes(span, packed, dtype) for span in in_order])
    order = np.lexsort((hashes["low"], hashes["high"]))  # stable: equal ones stay in order
    ranked = hashes[order]
    again = np.zeros(len(hashes), dtype=bool)
    again[order[1:]] = ranked[1:] == ranked[:-1]
    stops = np.cumsum([span.size.documents for span in in_order])
    for span, own in zip(in_order, np.split(again, stops[:-1]), strict=True):
        span.keep = ~own
    return int(again.sum())


def _hashes(span: DocumentSpan, packed: Path, dtype: str) -> np.ndarray:
    kind = np.dtype([("high", "<u8"), ("low", "<u8")])
    if packed not in span.prefix.parents:
        return _read_sidecar(span, "hash", kind)
    itemsize = np.dtype(dtype).itemsize
    with beside(span.prefix, "bin").open("rb") as file:
        file.seek(span.before.tokens * itemsize)
        hashes = [ids_hash(file.read(length * itemsize)) for length in span.lengths().tolist()]
    return np.frombuffer(b"".join(hashes), dtype=kind)


def _read_sidecar(span: DocumentSpan, name: str, dtype: np.dtype) -> np.ndarray:
    with beside(span.prefix, name).open("rb") as file:
        file.seek(span.before.documents * dtype.itemsize)
        return np.frombuffer(file.read(span.size.documents * dtype.itemsize), dtype=dtype)
