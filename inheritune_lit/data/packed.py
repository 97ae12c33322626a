"""Packed data: a folder of tokens by split and domain, read in samples."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np

from inheritune_lit.data.manifest import SPLITS, Count, load_packed_manifest
from inheritune_lit.data.megatron import REMEDY, beside, open_documents
from inheritune_lit.data.sampler import DomainSize
from inheritune_lit.errors import UserError
from inheritune_lit.io.manifest import sha256_file
from inheritune_lit.io.progress import Progress
from inheritune_lit.tokenizer import Tokenizer

PADDING = -100  # stands where a sample has no token; as a target, torch's cross-entropy ignores it
_STRIDE = 128  # documents per entry of the index, which takes an eighth of a byte per document
_CHECKED = 4096
_CHUNK = _STRIDE << 13
_NAMED, _MUCH = 5, 0.01


def check_fits_model(folder: Path, checkpoint_dir: Path, padded_vocab_size: int) -> None:
    """Refuses packed data made with another tokenizer than a checkpoint's, or too large for its model's embeddings."""
    manifest = load_packed_manifest(folder)
    if manifest.max_token_id >= padded_vocab_size:
        misfit = f"{folder} holds token id {manifest.max_token_id}, {checkpoint_dir} has {padded_vocab_size} embeddings"
        remedy = "prepare the data with the model's own tokenizer"
        raise UserError(f"vocabulary too large for the model: {misfit}; {remedy}")
    tokenizer, made_with = Tokenizer(checkpoint_dir), manifest.tokenizer.sha256
    if (own := tokenizer.sha256()) != made_with:
        problem = f"another tokenizer (SHA-256 {made_with[:12]}...) than {tokenizer.path} ({own[:12]}...)"
        raise UserError(f"{folder} was made with {problem}; prepare the data with `--tokenizer_dir {checkpoint_dir}`")


@dataclass(frozen=True)
class VerifyResult:
    """A packed folder that is as its manifest says."""

    folder: Path
    files: int
    tokens: int

    def __str__(self) -> str:
        return f"{self.folder}: {self.files} files with {self.tokens:,} tokens are as the manifest says"


def verify_packed(folder: Path) -> VerifyResult:
    """Compares files' sizes and SHA-256, and domains' counts, with the manifest; a difference is a ``UserError``."""
    manifest = load_packed_manifest(folder)
    files = manifest.files
    paths = (path for split in SPLITS for path in (folder / split).glob("*") if path.suffix in (".bin", ".idx"))
    there = {path.relative_to(folder).as_posix() for path in paths}
    faults = [f"{name} is missing" for name in files if name not in there]
    faults += [f"{name} is not listed" for name in sorted(there - set(files))]
    with Progress("verify", sum(file.bytes for file in files.values()), "B") as progress:
        for name in (name for name in files if name in there):
            size = (folder / name).stat().st_size
            if size != files[name].bytes:
                faults.append(f"{name} has {size} bytes instead of {files[name].bytes}")
            elif sha256_file(folder / name) != files[name].sha256:
                faults.append(f"{name} has another SHA-256 than when it was written")
            progress.update(size)
    if faults:
        more = f" and {len(faults) - 1} more" if len(faults) > 1 else ""
        raise UserError(f"{folder} differs from its manifest: {faults[0]}{more}; {REMEDY}")
    counts = {f"{split}/{name}": domain[split] for name, domain in manifest.domains.items() for split in SPLITS}
    for name, count in counts.items():
        _open(folder / name, count)
    return VerifyResult(folder, len(files), sum(count.tokens for count in counts.values()))


class PackedCut:
    """Documents back to back, cut every ``block_size`` tokens: ``samples`` with ``targets`` in all.

    Sample s has the inputs [s * block_size, (s + 1) * block_size); a token is a target at most once, the end left out.
    """

    def __init__(self, tokens: int, block_size: int) -> None:
        self.block_size, self.samples = block_size, max(0, tokens - 1) // block_size
        self.targets = self.samples * block_size

    def spans(self, samples_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns where samples begin in the domain's tokens, and how many targets they have; int64, shape (B,)."""
        return samples_B * self.block_size, np.full(len(samples_B), self.block_size)


class SeparateCut:
    """Every document for itself: a sample holds tokens of one document only.

    A document of n tokens has n - 1 targets; its samples take ``block_size`` of them each, the last one what is left.
    So each token but a document's first is a target exactly once.

    ``lengths``, the tokens of each document, shape (documents,), are read in pieces and kept as they are.
    """

    def __init__(self, lengths: np.ndarray, block_size: int) -> None:
        self.block_size, self._lengths, self.targets = block_size, lengths, 0
        samples, tokens = [np.zeros(1, dtype=np.int64)], [np.zeros(1, dtype=np.int64)]
        for first in range(0, len(lengths), _CHUNK):
            some = lengths[first : first + _CHUNK].astype(np.int64)
            starts = np.arange(0, len(some), _STRIDE)
            samples.append(np.add.reduceat(self._samples_of(some), starts))
            tokens.append(np.add.reduceat(some, starts))
            self.targets += int(np.maximum(some - 1, 0).sum())
        # Samples and tokens before every _STRIDE-th document.
        self._samples, self._tokens = np.cumsum(np.concatenate(samples)), np.cumsum(np.concatenate(tokens))
        self.samples = int(self._samples[-1])

    def _samples_of(self, lengths: np.ndarray) -> np.ndarray:
        return (np.maximum(lengths - 1, 0) + self.block_size - 1) // self.block_size

    def spans(self, samples_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See ``PackedCut``."""
        rows, entry_B = np.arange(len(samples_B)), np.searchsorted(self._samples, samples_B, side="right") - 1
        documents_BS = entry_B[:, None] * _STRIDE + np.arange(_STRIDE)
        lengths_BS = self._lengths.take(documents_BS, mode="clip").astype(np.int64)
        lengths_BS[documents_BS >= len(self._lengths)] = 0
        ends_BS = np.cumsum(self._samples_of(lengths_BS), axis=1)
        in_entry_B = samples_B - self._samples[entry_B]
        document_B = (ends_BS <= in_entry_B[:, None]).sum(axis=1)
        length_B = lengths_BS[rows, document_B]
        before_B = np.cumsum(lengths_BS, axis=1)[rows, document_B] - length_B
        in_document_B = in_entry_B - (ends_BS[rows, document_B] - self._samples_of(length_B))
        offset_B = in_document_B * self.block_size
        return self._tokens[entry_B] + before_B + offset_B, np.minimum(self.block_size, length_B - 1 - offset_B)


class PackedDataset:
    """One split of packed data, "train" or "val", as a fixed list of samples.

    A sample is at most ``block_size`` inputs and their targets, one token later; no token is a target twice. "packed"
    documents are cut every ``block_size`` tokens of a domain, "separate" ones each for itself, their last sample filled
    with padding. Domains follow each other in order of their names; ``domains`` has their sizes, also of those without
    a sample. Damaged or other files, or none that fills a sample, are a ``UserError``.
    """

    def __init__(
        self, folder: Path, split: str, block_size: int, documents: Literal["packed", "separate"] = "packed"
    ) -> None:
        self.folder, self.split, self.block_size = folder, split, block_size
        manifest = load_packed_manifest(folder)
        self._max_token_id = manifest.max_token_id
        self._counts = {name: domain[split] for name, domain in sorted(manifest.domains.items())}
        self._held = sum(count.tokens for count in self._counts.values())
        self._cuts, self.domains, self._unused = [], {}, {}
        for name, count in self._counts.items():
            tokens, lengths = _open(folder / split / name, count)
            for some in (tokens[:_CHECKED], tokens[-_CHECKED:]):  # the rest when it is read
                self._check(some, name)
            cut = PackedCut(len(tokens), block_size) if documents == "packed" else SeparateCut(lengths, block_size)
            self._cuts.append(cut)
            self.domains[name] = DomainSize(cut.samples, cut.targets)
            if documents == "packed" and cut.targets < len(tokens) - 1:
                self._unused[name] = len(tokens) - 1 - cut.targets
        self._names, self._ends = list(self.domains), np.cumsum([cut.samples for cut in self._cuts])
        # Each mapping holds a file open, and there may be thousands of domains.
        self._tokens = lru_cache(maxsize=256)(self._map)
        if not self._ends.any():
            few = f"{folder / split} holds {self._held} tokens, too few for one sample of {block_size}"
            if self._held > block_size:
                few += f" in any of its {len(self._names)} domains, which --domain of `inheritune prepare` joins"
            remedy = "give more text or shorter samples (--train.max_seq_length, or --seq_length of analyze)"
            raise UserError(f"{few}; {remedy}")

    def _map(self, domain: str) -> np.ndarray:
        tokens, _ = _open(self.folder / self.split / domain, self._counts[domain])
        return np.asarray(tokens)  # slices of a memmap cost several times

    @property
    def left_over(self) -> str | None:
        """How many tokens fill no sample, of which domains; None where that is none."""
        if not self._unused:
            return None
        tokens, most = sum(self._unused.values()), sorted(self._unused.items(), key=lambda item: -item[1])
        named = ", ".join(f"{name} {count:,}" for name, count in most[:_NAMED])
        more = f" and {len(most) - _NAMED} more" if len(most) > _NAMED else ""
        share, advice = tokens / self._held, ""
        if share > _MUCH and len(self._names) > 1:
            advice = "; --domain of `inheritune prepare` joins domains, and shorter samples leave out less"
        return f"{tokens:,} tokens ({share:.1%}) do not fill a sample and are left out ({named}{more}){advice}"

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, sample: int) -> np.ndarray:
        """Returns the token ids of a sample, int64, shape (block_size + 1,); see ``batch``."""
        return self.batch([sample])[0]

    def batch(self, samples: Sequence[int] | np.ndarray) -> np.ndarray:
        """Returns some samples' tokens, int64, shape (B, block_size + 1), ``PADDING`` behind a document's end."""
        tokens_BT1 = np.full((len(samples), self.block_size + 1), PADDING, dtype=np.int64)
        padding, rows_of = tokens_BT1.size, {}
        for domain, rows, first_B, targets_B in self._spans(samples):
            tokens, rows_of[domain] = self._tokens(domain), rows
            for row, first, targets in zip(rows.tolist(), first_B.tolist(), targets_B.tolist(), strict=True):
                tokens_BT1[row, : targets + 1] = tokens[first : first + targets + 1]
                padding -= targets + 1
        # Read without a sign, negative numbers are above every id: two calls tell that no id is outside.
        if np.count_nonzero(tokens_BT1.view(np.uint64) > self._max_token_id) > padding:
            for domain, rows in rows_of.items():
                self._check(tokens_BT1[rows], domain, PADDING)
        return tokens_BT1

    def _check(self, tokens: np.ndarray, domain: str, other: int = 0) -> None:
        """Refuse ids that the tokenizer did not give; they would lie outside of the embedding."""
        outside = (tokens > self._max_token_id) | ((tokens < 0) & (tokens != other))
        if outside.any():
            damage = f"it holds token id {tokens[outside][0]}, the manifest says 0 to {self._max_token_id}"
            remedy = "restore it, or run `inheritune prepare` with another --out_dir"
            raise UserError(f"{self.folder / self.split / domain}.bin is damaged: {damage}; {remedy}")

    def targets(self, samples: Sequence[int] | np.ndarray) -> np.ndarray:
        """Returns how many targets some samples have, int64, shape (B,); their tokens are not read."""
        counts_B = np.empty(len(samples), dtype=np.int64)
        for _, rows, _, targets_B in self._spans(samples):
            counts_B[rows] = targets_B
        return counts_B

    def domains_of(self, samples: Sequence[int] | np.ndarray) -> list[str]:
        """Returns the names of the domains that some samples come from."""
        return [self._names[domain] for domain in self._domain_numbers(np.asarray(samples, dtype=np.int64)).tolist()]

    def _spans(self, samples: Sequence[int] | np.ndarray) -> Iterator[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
        """Yields samples by domain: its name, which of the samples are its, where they begin, and their targets."""
        samples_B = np.asarray(samples, dtype=np.int64)
        domains_B = self._domain_numbers(samples_B)
        for domain in np.unique(domains_B).tolist():
            rows, cut = np.flatnonzero(domains_B == domain), self._cuts[domain]
            yield self._names[domain], rows, *cut.spans(samples_B[rows] - (self._ends[domain] - cut.samples))

    def _domain_numbers(self, samples_B: np.ndarray) -> np.ndarray:
        outside_B = (samples_B < 0) | (samples_B >= len(self))
        if outside_B.any():
            raise IndexError(f"sample {samples_B[outside_B][0]} of {len(self)}")
        return np.searchsorted(self._ends, samples_B, side="right")


def _open(prefix: Path, recorded: Count) -> tuple[np.ndarray, np.ndarray]:
    if recorded.tokens == 0 and not beside(prefix, "bin").exists():
        return np.zeros(0, dtype=np.uint16), np.zeros(0, dtype=np.int32)
    tokens, lengths = open_documents(prefix)
    if Count(len(lengths), len(tokens)) != recorded:
        stated = f"the manifest says {recorded.tokens} of {recorded.documents}"
        raise UserError(f"{prefix} holds {len(tokens)} tokens of {len(lengths)} documents, {stated}; {REMEDY}")
    return tokens, lengths
