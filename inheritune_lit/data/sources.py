"""Source files of a corpus, in a folder or on the hub, and their domains."""

import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from inheritune_lit.data.args import ReadingArgs
from inheritune_lit.data.documents import ReadReport
from inheritune_lit.data.formats import format_of, read_rows, stem_of
from inheritune_lit.errors import UserError
from inheritune_lit.io.hub_errors import explain_hub_errors

SCHEME = "hf://datasets/"
_ADDRESS = f"{SCHEME}org/name[@revision][/folder]"
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_REVISION = r"refs/convert/\w+|refs/pr/\d+|[^/]+"  # the hub's own names have slashes, which may be written %2F
_SAFE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")
_NUMBERED = re.compile(r"[-_.]\d+-of-\d+$")
_MAX_DOMAINS = 200


@dataclass(frozen=True)
class SourceFile:
    """One file of a corpus."""

    name: str  # path below the source, with slashes; files are read in the order of their names
    path: str  # or hf://datasets/org/name@commit/file
    domain: str  # unless its rows name theirs
    bytes: int
    version: str  # changes with its content: the time of its last change in nanoseconds, or the hub's hash

    @property
    def on_hub(self) -> bool:
        """Whether it has to be fetched from the hub."""
        return self.path.startswith(SCHEME)


def find_sources(source: str | Path, args: ReadingArgs = ReadingArgs()) -> list[SourceFile]:
    """Returns the files of a corpus, sorted by name.

    A file's domain is ``args.domain``; else the first folder below the source (``arxiv/*.jsonl``,
    ``common_crawl/2019-30/*.jsonl.zst``: RedPajama-Data-1T); else its own name without ``_sample`` and
    ``-00000-of-00010`` (``arxiv_sample.jsonl``: RedPajama-Data-1T-Sample).

    The source is a folder, a file, ``hf://datasets/org/name[@revision][/folder]``, or ``org/name`` on the hub. Nothing
    there, nothing readable there, or a file without a usable domain is a ``UserError``.
    """
    source = str(source)
    if is_hub_source(source):
        found = list(_list_dataset(source))
    elif Path(source).exists():
        found = list(_list_local(Path(source)))
    else:
        raise UserError(f"no corpus at {source}; give a folder, a file, or {SCHEME}org/name for a data set of the hub")
    files = [
        SourceFile(name, path, _domain_of(name, path, args), size, version)
        for name, path, size, version in found
        if format_of(name, args)
    ]
    if not files:
        raise UserError(
            f"no .jsonl, .jsonl.gz, .jsonl.zst, .parquet or .txt file in {source}"
            f"{f' among {len(found)} files' if found else ''}; give a folder of such files"
        )
    domains = {file.domain for file in files}
    if len(domains) > _MAX_DOMAINS:
        raise UserError(
            f"{source} would make {len(domains)} domains, such as {min(domains)!r}; "
            "put a domain's files into a folder, or name one for all files with --domain"
        )
    return sorted(files, key=lambda file: file.name)


def iter_documents(
    source: str | Path, args: ReadingArgs = ReadingArgs(), max_characters: int | None = None
) -> Iterator[str]:
    """Yields the texts of a local corpus that are not blank, in the order in which ``prepare`` packs them.

    With ``max_characters`` an equal part from the beginning of each file; the last text of a file is cut there. A
    source on the hub or without anything readable, or a file with too many broken rows, is a ``UserError``.
    """
    if is_hub_source(str(source)):
        raise UserError(f"{source} is not on this machine; give a file or folder of text")
    files = find_sources(source, args)
    for file in files:
        report, left = ReadReport(), sys.maxsize if max_characters is None else max_characters // len(files)
        for text, _ in read_rows(Path(file.path), args, report):
            if text.strip():
                yield text[:left]
            left -= len(text)
            if left <= 0:
                break
        report.check(file.path)


def _domain_of(name: str, path: str, args: ReadingArgs) -> str:
    if args.domain is not None:
        return check_domain(args.domain, "--domain")
    folder, slash, _ = name.partition("/")
    domain = folder if slash else _NUMBERED.sub("", stem_of(name)).removesuffix("_sample")
    if not domain:
        raise UserError(f"{path} names no domain; rename it to <domain>.jsonl, or give --domain")
    return check_domain(domain, path)


def check_domain(domain: str, place: str) -> str:
    """Returns a domain's name, or raises a ``UserError`` about its place where it cannot be a file's name."""
    if not _SAFE_NAME.fullmatch(domain):
        raise UserError(
            f"{place} names the domain {domain!r}; use letters, digits and any of _ . + -, for instance with --domain"
        )
    return domain


def _list_local(source: Path) -> Iterator[tuple[str, str, int, str]]:
    """Yields name, path, bytes and version of each file; hidden ones are left out."""
    for path in [source] if source.is_file() else _walk(source):
        name = path.name if path == source else path.relative_to(source).as_posix()
        yield name, str(path), path.stat().st_size, str(path.stat().st_mtime_ns)


def _walk(source: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise UserError(f"cannot read {error.filename}: {error.strerror}") from error

    seen = set()
    for folder, folders, names in os.walk(source, followlinks=True, onerror=refuse):
        real = os.path.realpath(folder)
        if real in seen:
            raise UserError(f"{folder} is {real} once more, through a link; its text would be packed twice")
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        for path in (Path(folder, name) for name in names if not name.startswith(".")):
            if path.is_file():
                yield path
            elif not path.exists():
                raise UserError(f"{path} is a link to nowhere; fetch the file again or remove the link")


def is_hub_source(source: str) -> bool:
    """Returns whether a source is on the hub: spelled out, or ``org/name`` where no such path exists."""
    if source.startswith("hf://"):
        if not source.startswith(SCHEME):
            raise UserError(f"{source} is not a data set; write {_ADDRESS}")
        return True
    return bool(_REPOSITORY.fullmatch(source)) and not Path(source).exists() and not Path(source).parent.exists()


def parse_hub_source(source: str) -> tuple[str, str | None, str]:
    """Returns repository, revision (None for the default branch) and path of a source on the hub, or refuses it."""
    address = rf"({_REPOSITORY.pattern})(?:@({_REVISION}))?(?:/(.+?))?/?"
    match = re.fullmatch(address, source.removeprefix(SCHEME))
    if not match:
        raise UserError(f"{source} is not a data set of the hub; write {_ADDRESS}")
    return match[1], match[2] and unquote(match[2]), match[3] or ""


def _list_dataset(source: str) -> Iterator[tuple[str, str, int, str]]:
    """Yields name below the source, address with the commit, bytes and hash of each file of a data set."""
    from huggingface_hub import HfApi

    repository, revision, folder = parse_hub_source(source)
    with explain_hub_errors(repository, flag="--source", kind="dataset"):
        info = HfApi().dataset_info(repository, revision=revision, files_metadata=True)
    below = f"{folder}/" if folder else ""
    files = [file for file in info.siblings or () if file.rfilename.startswith(below)]
    if not files and folder:
        raise UserError(f"{repository} has no folder {folder}; check --source")
    for file in files:
        content = file.lfs.sha256 if file.lfs else file.blob_id
        address = f"{SCHEME}{repository}@{info.sha}/{file.rfilename}"
        yield file.rfilename.removeprefix(below), address, file.size or 0, content or str(info.sha)


@contextmanager
def local_copy(file: SourceFile, folder: Path) -> Iterator[Path]:
    """Yields a source file on this machine: itself, or a copy fetched into ``folder``, which is removed afterwards."""
    if not file.on_hub:
        yield Path(file.path)
        return
    from huggingface_hub import hf_hub_download

    repository, revision, path = parse_hub_source(file.path)
    with explain_hub_errors(repository, flag="--source", kind="dataset"):
        fetched = Path(hf_hub_download(repository, path, repo_type="dataset", revision=revision, local_dir=folder))
    try:
        yield fetched
    finally:
        shutil.rmtree(folder, ignore_errors=True)
