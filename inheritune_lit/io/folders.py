"""New folders appear whole or not at all."""

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from inheritune_lit.errors import UserError


def check_vacant(out_dir: Path) -> None:
    """Refuse an output folder that already holds something, or that cannot be made.

    Raises:
        UserError: ``out_dir`` is a file, a folder that is not empty, or below a file or a folder without permission.
    """
    if out_dir.is_dir():
        if any(out_dir.iterdir()):
            raise UserError(f"output folder {out_dir} already holds files; give another --out_dir or remove it")
    elif out_dir.exists() or out_dir.is_symlink():
        raise UserError(f"output folder {out_dir} is a file; give another --out_dir")
    else:
        above = next(path for path in out_dir.absolute().parents if os.path.lexists(path))
        if not above.is_dir():
            raise UserError(f"cannot write {out_dir}: {above} is not a folder; give another --out_dir")
        if not os.access(above, os.W_OK | os.X_OK):
            raise UserError(f"cannot write {out_dir}: no permission to write into {above}; give another --out_dir")


def make_folder(folder: Path, output: Path) -> None:
    """Make a folder with those above it, where it is not there.

    Args:
        folder: for what is written.
        output: what the user asked for.

    Raises:
        UserError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {output}: {error.strerror}; give another path") from error


@contextmanager
def new_folder(out_dir: Path) -> Iterator[Path]:
    """Yield a staging folder beside ``out_dir`` that takes its name when the block ends without an error.

    The staging folder is on the same file system, so the rename is atomic. On any error, also Ctrl-C, it is
    removed and ``out_dir`` stays as it was.

    Raises:
        UserError: ``out_dir`` already holds something, before or after the work, or cannot be written.
    """
    check_vacant(out_dir)
    make_folder(out_dir.parent, out_dir)
    try:
        staging = Path(tempfile.mkdtemp(prefix=f".{out_dir.name}.partial-", dir=out_dir.parent))
    except OSError as error:
        raise UserError(f"cannot write {out_dir}: {error.strerror}; give another --out_dir") from error
    try:
        staging.chmod(0o777 & ~_umask())
        yield staging
        check_vacant(out_dir)
        try:
            os.replace(staging, out_dir)
        except OSError:
            # Another process may have taken the name since.
            check_vacant(out_dir)
            raise
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


@contextmanager
def explain_full_disk(out_dir: Path) -> Iterator[None]:
    """Turn a full disk or an exhausted quota into one line.

    Raises:
        UserError: the block ran out of space.
    """
    try:
        yield
    except OSError as error:
        from_numpy = type(error) is OSError and error.errno is None  # array.tofile gives no number
        if not from_numpy and error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        reason = error.strerror or error
        raise UserError(f"cannot write {out_dir}: {reason}; free space or give another --out_dir") from error


def replace_file(path: Path, write: Callable[[Path], Any]) -> None:
    """Replace a file, or write a new one; a kill or a failure leaves the old one or the new one, whole.

    Args:
        path: the file.
        write: writes the path that it is given, beside ``path``.
    """
    aside = path.with_name(f".{path.name}.partial")
    try:
        write(aside)
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def replace_text(path: Path, text: str) -> None:
    """``replace_file`` with UTF-8 text."""
    replace_file(path, lambda aside: aside.write_text(text, encoding="utf-8"))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
