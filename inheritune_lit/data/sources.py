"""Data sets of the hub, file by file."""

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
from inheritune_lit.data.formats.report import ReadReport, check_broken
from inheritune_lit.data.formats.table import format_of, stem_of
from inheritune_lit.errors import UserError
from inheritune_lit.io.hub_errors import explain_hub_errors

SCHEME = "hf://datasets/"
_BARE = re.compile(r"[\w.-]+/[\w.-]+")


def is_hub_source(source: str) -> bool:
    """Whether a source is on the hub: spelled out, or ``org/name`` where no such path exists."""
    if source.startswith("hf://"):
        if not source.startswith(SCHEME):
            raise UserError(f"{source} is no data set; write {SCHEME}org/name[@revision][/folder]")
        return True
    return bool(_BARE.fullmatch(source)) and not Path(source).exists() and not Path(source).parent.exists()


def list_dataset(source: str) -> list[tuple[str, str, int, str]]:
    """Name below the source, address with the commit, bytes and hash of each file.

    Args:
        source: ``hf://datasets/org/name[@revision][/folder]`` or ``org/name``.

    Raises:
        UserError: no such data set, no permission, or no connection.
    """
    from huggingface_hub import HfApi

    repository, revision, folder = parse(source)
    with explain_hub_errors(repository, flag="--source", kind="dataset"):
        info = HfApi().dataset_info(repository, revision=revision, files_metadata=True)
    below = f"{folder}/" if folder else ""
    files = []
    for sibling in info.siblings or ():
        if sibling.rfilename.startswith(below):
            name = sibling.rfilename[len(below) :]
            address = f"{SCHEME}{repository}@{info.sha}/{sibling.rfilename}"
            content = sibling.lfs.sha256 if sibling.lfs else sibling.blob_id
            files.append((name, address, sibling.size or 0, content or str(info.sha)))
    if not files and folder:
        raise UserError(f"{repository} has no folder {folder}; check --source")
    return files


def parse(source: str) -> tuple[str, str | None, str]:
    """Repository, revision (None for the default branch) and path of a source.

    Raises:
        UserError: it is spelled otherwise.
    """
    revision = r"refs/convert/\w+|refs/pr/\d+|[^/]+"  # the hub's own names have slashes, which may be written %2F
    match = re.fullmatch(rf"([\w.-]+/[\w.-]+)(?:@({revision}))?(?:/(.+?))?/?", source.removeprefix(SCHEME))
    if not match:
        raise UserError(f"{source} is no data set of the hub; write {SCHEME}org/name[@revision][/folder]")
    return match[1], match[2] and unquote(match[2]), match[3] or ""


@contextmanager
def local_copy(path: str, folder: Path) -> Iterator[Path]:
    """A source file on this machine: itself, or a copy that is fetched into ``folder`` and removed with it afterwards.

    Raises:
        UserError: the hub does not answer.
    """
    if not path.startswith(SCHEME):
        yield Path(path)
        return
    from huggingface_hub import hf_hub_download

    repository, revision, file = parse(path)
    with explain_hub_errors(repository, flag="--source", kind="dataset"):
        fetched = Path(hf_hub_download(repository, file, repo_type="dataset", revision=revision, local_dir=folder))
    try:
        yield fetched
    finally:
        shutil.rmtree(folder, ignore_errors=True)


_SAFE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")
_NUMBERED = re.compile(r"[-_.]\d+-of-\d+$")
_MAX_DOMAINS = 200


@dataclass(frozen=True)
class SourceFile:
    """One file of a corpus.

    Attributes:
        name: path below the source, with slashes; files are read in the order of their names.
        path: where it is: a path, or ``hf://datasets/org/name@commit/file``.
        domain: its domain, unless its rows name theirs.
        bytes: its size.
        version: changes with its content: the time of its last change in nanoseconds, or the hub's hash.
    """

    name: str
    path: str
    domain: str
    bytes: int
    version: str


def find_sources(source: str | Path, args: ReadingArgs = ReadingArgs()) -> list[SourceFile]:
    """The files of a corpus, sorted by name.

    A file's domain is ``args.domain``; else the first folder below the source (``arxiv/*.jsonl``,
    ``common_crawl/2019-30/*.jsonl.zst``: RedPajama-Data-1T); else its own name without ``_sample`` and
    ``-00000-of-00010`` (``arxiv_sample.jsonl``: RedPajama-Data-1T-Sample).

    Args:
        source: a folder, a file, ``hf://datasets/org/name[@revision][/folder]``, or ``org/name`` on the hub.
        args: names the domain, or which field does.

    Raises:
        UserError: nothing there, nothing readable there, or a file without a usable domain.
    """
    source = str(source)
    if is_hub_source(source):
        found = list_dataset(source)
    elif Path(source).exists():
        found = _local_files(Path(source))
    else:
        raise UserError(
            f"no corpus at {source}; give a folder, a file, or hf://datasets/org/name for a data set of the hub"
        )
    readable = [file for file in found if format_of(file[0], args)]
    if not readable:
        raise UserError(
            f"no .jsonl, .jsonl.gz, .jsonl.zst, .parquet or .txt file in {source}"
            f"{f' among {len(found)} files' if found else ''}; give a folder of such files"
        )
    files = [
        SourceFile(name, path, domain_of(name, path, args), size, version) for name, path, size, version in readable
    ]
    domains = {file.domain for file in files}
    if len(domains) > _MAX_DOMAINS:
        raise UserError(
            f"{source} would make {len(domains)} domains, such as {sorted(domains)[0]!r}; "
            "put a domain's files into a folder, or name one for all files with --domain"
        )
    return sorted(files, key=lambda file: file.name)


def iter_documents(
    source: str | Path, args: ReadingArgs = ReadingArgs(), max_characters: int | None = None
) -> Iterator[str]:
    """Yields the texts of a local corpus that are not blank, in the order in which ``prepare`` packs them.

    Args:
        source: a folder or a file.
        args: how rows are read.
        max_characters: most text, an equal part from the beginning of each file; the last text of a file is cut there.

    Raises:
        UserError: the source is on the hub or holds nothing readable, or too many rows of a file are broken.
    """
    if is_hub_source(str(source)):
        raise UserError(f"{source} is not on this machine; give a file or folder of text")
    files = find_sources(source, args)
    for file in files:
        kind, report = format_of(file.name, args), ReadReport()
        assert kind is not None, file
        left = sys.maxsize if max_characters is None else max_characters // len(files)
        for text, _ in kind.read(Path(file.path), 0, None, args, report):
            if text.strip():
                yield text[:left]
            left -= len(text)
            if left <= 0:
                break
        check_broken(file.path, report)


def domain_of(name: str, path: str, args: ReadingArgs) -> str:
    """Domain of a file by its name below the source.

    Raises:
        UserError: the name gives none.
    """
    if args.domain is not None:
        return check_domain(args.domain, "--domain")
    folder, _, _ = name.partition("/")
    domain = folder if folder != name else _NUMBERED.sub("", stem_of(name)).removesuffix("_sample")
    if not domain:
        raise UserError(f"{path} names no domain; rename it to <domain>.jsonl, or give --domain")
    return check_domain(domain, path)


def check_domain(domain: str, place: str) -> str:
    """A domain's name that can be a file's name.

    Raises:
        UserError: it cannot.
    """
    if not _SAFE_NAME.fullmatch(domain):
        raise UserError(
            f"{place} names the domain {domain!r}; use letters, digits and any of _ . + -, for instance with --domain"
        )
    return domain


def _local_files(source: Path) -> list[tuple[str, str, int, str]]:
    if source.is_file():
        return [_local_file(source.name, source)]
    files, seen = [], set()

    def refuse(error: OSError) -> None:
        raise UserError(f"cannot read {error.filename}: {error.strerror}") from error

    for folder, folders, names in os.walk(source, followlinks=True, onerror=refuse):
        real = os.path.realpath(folder)
        if real in seen:
            raise UserError(f"{folder} is {real} once more, through a link; its text would be packed twice")
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(folder, name)
            if name.startswith("."):
                continue
            if path.is_file():
                files.append(_local_file(path.relative_to(source).as_posix(), path))
            elif not path.exists():
                raise UserError(f"{path} is a link to nowhere; fetch the file again or remove the link")
    return files


def _local_file(name: str, path: Path) -> tuple[str, str, int, str]:
    status = path.stat()
    return name, str(path), status.st_size, str(status.st_mtime_ns)
