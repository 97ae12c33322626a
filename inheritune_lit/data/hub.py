"""Data sets of the hub, file by file."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote

from inheritune_lit.checkpoint.hub_errors import explain_hub_errors
from inheritune_lit.errors import UserError

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
