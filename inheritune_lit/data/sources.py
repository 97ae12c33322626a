"""Source files of a corpus, in a folder or on the hub, and their domains."""

import hashlib
import logging
import os
import re
import shutil
import sys
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from inheritune_lit.data.args import ReadingArgs
from inheritune_lit.data.formats import READ, ReadReport, format_of, read_rows, stem_of
from inheritune_lit.errors import UserError
from inheritune_lit.io.hub_errors import explain_hub_errors
from inheritune_lit.io.manifest import sha256_file

logger = logging.getLogger(__name__)

SCHEME = "hf://datasets/"
_ADDRESS = f"{SCHEME}org/name[@revision][/folder]"
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_REVISION = r"refs/convert/\w+|refs/pr/\d+|[^/]+"  # the hub's own names have slashes, which may be written %2F
_SAFE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")
_NUMBERED = re.compile(r"[-_.]\d+-of-\d+$")
_MAX_DOMAINS = 200
_MAX_KINDS = 20
_ENDS_BYTES = 1 << 20
_COPY = "holds the same as"

LeftOut = defaultdict[str, list[str]]  # names of what is not read, by the reason


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
    """Returns the files of a corpus, sorted by name; what is left out is logged.

    A file's domain is ``args.domain``, else the first folder below the source (``arxiv/*.jsonl``: RedPajama-Data-1T),
    else its own name without ``_sample`` and ``-00000-of-00010`` (``arxiv_sample.jsonl``: its sample).

    The source is a folder, a file, ``hf://datasets/org/name[@revision][/folder]``, or ``org/name`` on the hub. Nothing
    readable there, a link that leads out of the folder, or a file without a usable domain is a ``UserError``.
    """
    source, left_out = str(source), LeftOut(list)
    if is_hub_source(source):
        found = list(_list_dataset(source))
    elif os.path.lexists(source):
        found = list(_list_local(Path(source), left_out))
    else:
        raise UserError(f"no corpus at {source}; give a folder, a file, or {SCHEME}org/name for a data set of the hub")
    files = []
    for name, path, size, version in found:
        if format_of(name, args):
            files.append(SourceFile(name, path, _domain_of(name, path, args), size, version))
        else:
            ending = os.path.splitext(name)[1]
            left_out[f"*{ending}" if ending else "without an ending"].append(name)
    if not files:
        among = f" among {len(found)} files" if found else ""
        raise UserError(f"no {READ} file in {source}{among}; give a folder of such files")
    if any(left_out.values()):
        kinds = sorted(left_out.items(), key=lambda kind: -len(kind[1]))
        told = [f"{len(names)} {kind} ({names[0]})" for kind, names in kinds[:_MAX_KINDS] if names]
        told += [f"{sum(len(names) for _, names in kinds[_MAX_KINDS:])} others"] if len(kinds) > _MAX_KINDS else []
        logger.warning(f"inheritune: warning: left out of {source}: {', '.join(told)}; read are {READ}")
    domains = {file.domain for file in files}
    if len(domains) > _MAX_DOMAINS:
        remedy = "put a domain's files into a folder, or name one for all files with --domain"
        raise UserError(f"{source} would make {len(domains)} domains, such as {min(domains)!r}; {remedy}")
    return sorted(files, key=lambda file: file.name)


def check_distinct(files: Sequence[SourceFile], known: Mapping[str, str]) -> None:
    """Refuses one text in two files: one file by a link, another form of it, or a copy; logged in another domain.

    ``known`` has the SHA-256 of files that were packed before; these are not compared with each other.
    """
    met: dict[Hashable, SourceFile] = {}

    def meet(key: Hashable, file: SourceFile, how: str, remedy: str = "remove one of them") -> None:
        other = met.setdefault(key, file)
        if other is file or (other.name in known and file.name in known):
            return
        if how == _COPY and file.domain != other.domain:
            logger.warning(f"inheritune: warning: {file.path} {how} {other.path}: its text is packed twice")
            return
        twice = f"{file.path} {how} {other.path}, and would be packed twice"
        raise UserError(f"{twice}; {remedy}, or give --drop_duplicates")

    for file in files:
        if not file.on_hub:
            status = os.stat(file.path)
            meet((status.st_dev, status.st_ino), file, "is the same file as")
        other_text = "remove one of them, rename it if it holds other text"
        meet(stem_of(file.name).lower(), file, "has the name of", other_text)
    sizes = Counter(file.bytes for file in files)
    ends = {file: _ends_of(file) for file in files if file.bytes and sizes[file.bytes] > 1}
    times = Counter(ends.values())
    for file in (file for file, end in ends.items() if times[end] > 1):
        content = file.version if file.on_hub else known.get(file.name) or sha256_file(Path(file.path))
        meet(("content", content), file, _COPY)


def _ends_of(file: SourceFile) -> tuple[int, str]:
    """Size and a hash of beginning and end: they tell most files apart, where reading a corpus would take hours."""
    if file.on_hub:
        return file.bytes, file.version
    with Path(file.path).open("rb") as content:
        digest = hashlib.sha256(content.read(_ENDS_BYTES))
        content.seek(max(0, file.bytes - _ENDS_BYTES))
        digest.update(content.read(_ENDS_BYTES))
    return file.bytes, digest.hexdigest()


def iter_documents(
    source: str | Path, args: ReadingArgs = ReadingArgs(), max_characters: int | None = None
) -> Iterator[str]:
    """Yields the texts of a local corpus that are not blank, in the order in which ``prepare`` packs them.

    With ``max_characters`` an equal part of the beginning of each file; a corpus that is not fit is a ``UserError``.
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
        remedy = "use letters, digits and any of _ . + -, for instance with --domain"
        raise UserError(f"{place} names the domain {domain!r}; {remedy}")
    return domain


def _list_local(source: Path, left_out: LeftOut) -> Iterator[tuple[str, str, int, str]]:
    """Yields name, path, bytes and version of each file."""
    if not source.is_file() and not source.is_dir():
        raise UserError(f"{source} is not a file or folder; give one of them")
    for path in [source] if source.is_file() else _walk(source, left_out):
        name = path.name if path == source else path.relative_to(source).as_posix()
        yield name, str(path), path.stat().st_size, str(path.stat().st_mtime_ns)


def _walk(source: Path, left_out: LeftOut) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise UserError(f"cannot read {error.filename}: {error.strerror}") from error

    def refuse_outside(path: Path | str, real: str) -> None:
        if not any(Path(real).is_relative_to(root) for root in inside):
            remedy = "copy that into it, or give its folder as --source"
            raise UserError(f"{path} is a link out of {source}, to {real}; {remedy}")

    inside, seen = [root := source.resolve()], set()
    # Snapshots in the hub's cache are links to its blobs.
    inside += [above.parent / "blobs" for above in (root, *root.parents) if above.name == "snapshots"][:1]
    for folder, folders, names in os.walk(source, followlinks=True, onerror=refuse):
        real = os.path.realpath(folder)
        if real in seen:
            raise UserError(f"{folder} is {real} once more, through a link; its text would be packed twice")
        seen.add(real)
        refuse_outside(folder, real)
        left_out["hidden"] += [name for name in (*folders, *names) if name.startswith(".")]
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for path in (Path(folder, name) for name in sorted(names) if not name.startswith(".")):
            if path.is_file():
                if path.is_symlink():
                    refuse_outside(path, os.path.realpath(path))
                yield path
            elif path.exists():
                left_out["pipes, sockets or devices"].append(path.name)
            else:
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
    with explain_hub_errors(repository, is_dataset=True):
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
    with explain_hub_errors(repository, is_dataset=True):
        fetched = Path(hf_hub_download(repository, path, repo_type="dataset", revision=revision, local_dir=folder))
    try:
        yield fetched
    finally:
        shutil.rmtree(folder, ignore_errors=True)
