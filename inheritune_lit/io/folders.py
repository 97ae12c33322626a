"""New folders and files appear whole or not at all, and a folder has one writer at a time."""

import errno
import fcntl
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from inheritune_lit.errors import UserError

LOCK = ".lock"  # name of the file that a folder's writer holds; it says who that is
_PARTIAL, _OLD = ".{}.partial", ".{}.old"
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # numbers of the errors that more space would have avoided


class OutOfSpace(UserError):
    """The disk is full: with more space, the same command succeeds."""


def check_vacant(out_dir: Path, replaced: bool = True) -> None:
    """Refuse an output that is a file, holds files, or cannot be written, or ``replaced`` as ``check_replaceable``."""
    if out_dir.is_dir():
        if any(not is_leftover(path) for path in out_dir.iterdir()):
            raise UserError(f"output folder {out_dir} already holds files; give another --out_dir or remove it")
        if replaced:
            check_replaceable(out_dir)
    elif out_dir.exists() or out_dir.is_symlink():
        raise UserError(f"output folder {out_dir} is a file; give another --out_dir")
    else:
        above = next(path for path in out_dir.absolute().parents if os.path.lexists(path))
        if not above.is_dir():
            raise UserError(f"cannot write {out_dir}: {above} is not a folder; give another --out_dir")
        if not os.access(above, os.W_OK | os.X_OK):
            raise UserError(f"cannot write {out_dir}: no permission to write into {above}; give another --out_dir")


def check_replaceable(out_dir: Path) -> None:
    """Refuse a mount point and the current folder: neither lets a finished folder take its place."""
    real = out_dir.resolve()
    if _is_mount(real):
        raise UserError(f"output folder {out_dir} is a mount point; give a folder in it as --out_dir")
    if real == Path.cwd():
        raise UserError(f"output folder {out_dir} is the current folder; give a folder in it as --out_dir")


def check_space(out_dir: Path, needed: int, what: str, smaller: str) -> None:
    """Refuse ``needed`` bytes for ``what`` that do not fit beside what is replaced; ``smaller`` would take less."""
    there = next(folder for folder in (out_dir, *out_dir.resolve().parents) if folder.is_dir())
    held = sum(path.stat().st_size for path in out_dir.rglob("*") if path.is_file())
    free = shutil.disk_usage(there).free + held
    if needed > free:
        lack = f"{out_dir} needs {needed / 1e9:.1f} GB for {what}, {free / 1e9:.1f} GB are free on its disk"
        raise UserError(f"{lack}; make room, give another --out_dir or {smaller}")


def make_folder(folder: Path, output: Path) -> None:
    """Make a folder with those above it, where it is not there, or refuse ``output``, which the user asked for."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {output}: {error.strerror}; give another path") from error


@contextmanager
def new_folder(out_dir: Path, replace: bool = False, keep: bool = False) -> Iterator[Path]:
    """Yield a staging folder beside ``out_dir`` that takes its name when the block ends without an error.

    The staging folder is on the same file system, so the rename is atomic. On any error, also Ctrl-C, it is removed and
    ``out_dir`` stays as it was; what a killed process left there is removed by the next call. A ``UserError`` says that
    another process is making ``out_dir``, it holds something, before or after the work, or it cannot be written.

    With ``replace`` an older folder of this name stays until the new one is whole, and is removed then; a kill leaves
    one of them, if need be under a name that ``restore`` sets right. With ``keep`` long work is continued: what is in
    the staging folder stays there when the block ends with an error, and for the next call.
    """
    check = check_replaceable if replace else check_vacant
    check(out_dir)
    target = out_dir.resolve()  # the folder that a link leads to is replaced, not the link
    staging = target.with_name(_PARTIAL.format(target.name))
    with own_folder(staging, out_dir):
        try:
            check(out_dir)  # another process may have finished it since
            for left in staging.iterdir():
                if left.name != LOCK and not keep:
                    remove(left)
            restore(target)
            yield staging
            check(out_dir)
            if target.is_dir() and not replace:
                with own_folder(target):  # removes what a killed writer left in it
                    pass
            (staging / LOCK).unlink()
            _rename(staging, target)
        except BaseException:
            if not keep:
                shutil.rmtree(staging, ignore_errors=True)
                restore(target)
            raise


def restore(folder: Path) -> None:
    """Complete or undo a replacement of this folder that was stopped halfway; for the process that owns its name."""
    partial, old = (folder.with_name(name.format(folder.name)) for name in (_PARTIAL, _OLD))
    if partial.is_dir() and not _is_held(partial):
        remove(partial)
    if old.is_dir() and folder.exists():
        shutil.rmtree(old)
    elif old.is_dir():
        old.rename(folder)


def _rename(staging: Path, target: Path) -> None:
    try:
        os.replace(staging, target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        old = target.with_name(_OLD.format(target.name))
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)  # a folder cannot be replaced in one call
        staging.rename(target)
        shutil.rmtree(old)


@contextmanager
def own_folder(folder: Path, output: Path | None = None) -> Iterator[None]:
    """Keep other processes from writing into a folder while the block runs.

    The folder is made where it is not there, and removed again where nothing came into it. What killed writers left in
    it half-done is removed first. One that another process owns, or that cannot be written, is a ``UserError`` about
    ``output``, which is what the user asked for, where that is another path.
    """
    output, is_new = output or folder, not folder.is_dir()
    try:
        with explain_full_disk(output):
            lock = _take(folder, output)
    except OSError as error:
        raise UserError(f"cannot write {output}: {error.strerror}; give another --out_dir") from error
    except OutOfSpace:
        if is_new:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    try:
        remove_leftovers(folder)
        yield
    finally:
        if _is_file_at(lock, folder / LOCK):
            (folder / LOCK).unlink()
        lock.close()
        if is_new:
            with suppress(OSError):
                folder.rmdir()


def remove_leftovers(folder: Path) -> None:
    """Remove what killed writers left half-done in a folder that this process owns."""
    for path in folder.iterdir():
        name = path.name.removeprefix(".").removesuffix(".old")
        if path.name == _OLD.format(name) and path.is_dir():
            restore(folder / name)
        elif path.name != LOCK and is_leftover(path) and not _is_held(path):
            remove(path)


def remove(path: Path) -> None:
    """Remove a file or a folder; a folder leaves its name at once, so none is seen half there."""
    if not path.is_dir() or path.is_symlink():
        path.unlink(missing_ok=True)
        return
    if not is_leftover(path):
        aside = path.with_name(_PARTIAL.format(path.name))
        shutil.rmtree(aside, ignore_errors=True)
        path = path.rename(aside)
    shutil.rmtree(path)


@contextmanager
def explain_full_disk(out_dir: Path) -> Iterator[None]:
    """Turn a full disk or an exhausted quota, which the block meets, into an ``OutOfSpace``."""
    try:
        yield
    except OSError as error:
        from_numpy = type(error) is OSError and error.errno is None  # array.tofile gives no number
        if not from_numpy and error.errno not in FULL_DISK:
            raise
        reason = error.strerror or error
        raise OutOfSpace(f"cannot write {out_dir}: {reason}; free space or give another --out_dir") from error


def replace_file(path: Path, write: Callable[[Path], Any]) -> None:
    """Make or replace a file whole or not at all: ``write`` writes the path beside ``path`` that it is given."""
    aside = path.with_name(_PARTIAL.format(path.name))
    try:
        write(aside)
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def replace_text(path: Path, text: str) -> None:
    """``replace_file`` with UTF-8 text."""
    replace_file(path, lambda aside: aside.write_text(text, encoding="utf-8"))


def is_leftover(path: Path) -> bool:
    """Whether a killed writer left this: its lock, or something that it had not finished."""
    return path.name == LOCK or (path.name.startswith(".") and path.name.endswith(".partial"))


def _is_mount(folder: Path) -> bool:
    if folder.is_mount():
        return True
    try:  # a folder of the same file system that is mounted here
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return False
    return any(line.split()[4].encode().decode("unicode_escape") == str(folder) for line in mounts)


def _take(folder: Path, output: Path) -> TextIO:
    """Make a folder and lock it until the file is closed or this process ends; one that is held is a ``UserError``."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            file = open(folder / LOCK, "a+", encoding="utf-8")  # noqa: SIM115, the lock lasts until it is closed
        except FileNotFoundError:  # the holder has renamed the folder since
            continue
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read(200).strip() or "another process"
            file.close()
            raise UserError(f"{holder} is at work on {output}; wait for it, or give another --out_dir") from None
        except OSError:
            pass  # a file system without locks: files and folders still appear whole
        if _is_file_at(file, folder / LOCK):
            with suppress(OSError):  # a full disk; what is at work here finds out
                file.truncate(0)
                file.write(f"process {os.getpid()} on {socket.gethostname()}")
                file.flush()
            return file
        file.close()  # the holder has removed it since


def _is_file_at(file: TextIO, path: Path) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    return False


def _is_held(path: Path) -> bool:
    """Whether somebody is at work on a folder that looks like a leftover."""
    try:
        if (path / LOCK).is_file():
            _take(path, path).close()
    except UserError:
        return True
    return False
