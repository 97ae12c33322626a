"""The manifest of packed data: what the folder holds, from which files and by which settings it was made."""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from inheritune_lit.data.sources import SourceFile, check_domain
from inheritune_lit.errors import UserError
from inheritune_lit.io.manifest import MANIFEST, differences, read_manifest
from inheritune_lit.io.records import to_record

SPLITS = ("train", "val")


@dataclass(frozen=True)
class Count:
    """A number of documents, and the tokens in them."""

    documents: int = 0
    tokens: int = 0

    def __add__(self, other: "Count") -> "Count":
        return Count(self.documents + other.documents, self.tokens + other.tokens)


@dataclass(frozen=True, kw_only=True)
class SplitCounts:
    """What both splits hold; ``counts["val"]`` is ``counts.val``."""

    train: Count = Count()
    val: Count = Count()

    def __getitem__(self, split: str) -> Count:
        return getattr(self, split)


@dataclass(frozen=True, kw_only=True)
class Share(SplitCounts):
    """What a domain has from a source file."""

    path: str
    name: str = ""
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class PackedDomain(SplitCounts):
    """A domain; its rows are counted unless they name their domains, since those left out then belong to none."""

    sources: list[Share] = field(default_factory=list)
    rows: int | None = None
    empty_rows: int | None = None
    broken_rows: int | None = None
    long_rows: int | None = None


@dataclass(frozen=True)
class PackedSource(SourceFile):
    """A source file, and what was met in it (see ``ReadReport``)."""

    sha256: str
    rows: int
    empty_rows: int
    broken_rows: int
    long_rows: int


@dataclass(frozen=True)
class PackedFile:
    """Size and hash of a ``.bin`` or ``.idx``."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class TokenizerRecord:
    """The tokenizer that made the tokens."""

    file: str
    sha256: str
    vocab_size: int
    eos_id: int | None


@dataclass(frozen=True)
class PackedSettings:
    """What all calls on one output have to agree on."""

    tokenizer: TokenizerRecord
    dtype: str
    options: dict[str, Any]

    def check_same(self, wanted: "PackedSettings", subject: str, advice: str) -> None:
        """Raises a ``UserError`` where those of this call differ; it begins with a subject like "out was made with"."""
        if self.tokenizer != wanted.tokenizer:
            raise UserError(f"{subject} another tokenizer; {advice}")
        for name, old, new in differences(self.options, wanted.options):
            raise UserError(f"{subject} other options: --{name} was {old}, now it is {new}; {advice}")


@dataclass(frozen=True)
class PackedManifest(PackedSettings):
    """``inheritune.json`` of packed data."""

    max_token_id: int
    domains: dict[str, PackedDomain]
    sources: list[PackedSource] = field(default_factory=list)
    duplicates: int = 0  # documents left out because they equal another
    files: dict[str, PackedFile] = field(default_factory=dict)  # by path below the folder


def find_packed_manifest(folder: Path) -> PackedManifest | None:
    """Returns the manifest of packed data, None where there is none; a damaged one is a ``UserError`` about a field."""
    if (content := read_manifest(folder, "packed_data")) is None:
        return None
    what, advice = "the manifest of packed data", "run `inheritune prepare` again with another --out_dir"
    manifest = to_record(content, PackedManifest, folder / MANIFEST, what, advice, others=True)
    for name in manifest.domains:
        check_domain(name, str(folder / MANIFEST))  # it becomes part of a path
    if manifest.dtype not in ("uint16", "int32"):
        raise UserError(f"{folder / MANIFEST} isn't {what}: dtype is {manifest.dtype!r}; {advice}")
    return manifest


def load_packed_manifest(folder: Path) -> PackedManifest:
    """Returns the manifest of a folder made by ``inheritune prepare``; any other folder is a ``UserError``."""
    manifest = find_packed_manifest(folder)
    if manifest is None:
        found = f"{folder} is not packed data" if folder.is_dir() else f"no packed data at {folder}"
        raise UserError(f"{found}; make it with `inheritune prepare`")
    return manifest


def content_sha256(folder: Path) -> str:
    """Returns a hash of what packed data holds: equal for the same text prepared again in the same way, wherever."""
    manifest = load_packed_manifest(folder)
    domains = {name: _content(domain) for name, domain in manifest.domains.items()}
    settings = {"tokenizer": manifest.tokenizer.sha256, "dtype": manifest.dtype, "options": manifest.options}
    return _sha256({**settings, "domains": domains})


def domain_sha256s(folder: Path) -> dict[str, str]:
    """Returns a hash of what each domain holds."""
    return {name: _sha256(_content(domain)) for name, domain in load_packed_manifest(folder).domains.items()}


def _content(domain: PackedDomain) -> list[Any]:
    return [asdict(domain[split]) for split in SPLITS] + [source.sha256 for source in domain.sources]


def _sha256(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
