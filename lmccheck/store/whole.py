"""Files that are written whole or not at all, and never over what was read; no torch here."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from lmccheck.errors import shown_path
from lmccheck.store.scratch import hold, left_over

MINUTE = 60.0  # in which one that was made is surely held by who made it


class NotOurs(Exception):
    """A folder that may not be replaced; ``names`` lie in it."""

    def __init__(self, names: list[str]) -> None:
        super().__init__(names)
        self.names = names


@contextmanager
def replacing_folder(path: Path, mark: str) -> Iterator[Path]:
    """Give the path of a new folder beside ``path``; where the block ends well, it takes that one's place.

    A folder that is there is replaced if it is empty, or if it holds ``mark`` and nothing that the new one lacks but
    weights; raises NotOurs otherwise. Whatever ends the block early leaves it as it was and nothing beside it; a kill
    leaves ``.lmccheck-….partial``, between two renames also what was to be replaced, ``.lmccheck-….replaced``: nobody
    reads them, and the next that is written beside them removes them. Raises OSError.
    """
    target = Path(os.path.realpath(path))
    if target.exists():
        _require_ours(target, mark)
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_left_over(target.parent)
    partial = target.with_name(f".lmccheck-{uuid4().hex}.partial")
    aside = target.with_name(f".lmccheck-{uuid4().hex}.replaced")
    lock = None
    try:
        partial.mkdir()
        lock = hold(partial)
        yield partial
        for file in partial.rglob("*"):
            if file.is_file():
                with open(file, "rb") as written:
                    os.fsync(written.fileno())
        if target.exists():
            _require_ours(target, mark, {file.name for file in partial.iterdir()})
            os.rename(target, aside)
        try:
            os.rename(partial, target)
        except BaseException:
            if aside.exists():
                os.rename(aside, target)
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(aside, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _remove_left_over(folder: Path) -> None:
    """Remove the folders that a killed process was writing or replacing, none of the last minute."""
    for path in [*folder.glob(".lmccheck-*.partial"), *folder.glob(".lmccheck-*.replaced")]:
        with suppress(OSError):
            seen = path.lstat()  # of what was renamed, the time that a rename changes
            old = time.time() - (seen.st_ctime if path.suffix == ".replaced" else seen.st_mtime) > MINUTE
            if old and path.is_dir() and not path.is_symlink() and left_over(path):
                shutil.rmtree(path, ignore_errors=True)


def _require_ours(folder: Path, mark: str, new: Collection[str] | None = None) -> None:
    """Raise NotOurs for a folder whose contents would be lost with it: other than ``new``, where that is known."""
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "is a file", str(folder))
    names = sorted(os.listdir(folder))
    if names and mark not in names:
        raise NotOurs(names)
    lost = [name for name in names if new is not None and name not in new and ".safetensors" not in name]
    if lost:
        raise NotOurs(lost)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give the path of a new file beside ``path``; where the block ends well, it takes that one's place.

    Folders are made. A link is written through: what it points to is replaced, the link stays. The mode is that of the
    file replaced, or what the umask leaves. Whatever ends the block otherwise, also an interrupt, leaves the old file
    as it was and nothing beside it. Raises OSError, also for what is no file (a device would be replaced by one) and
    for a file that may not be written to.
    """
    target = Path(os.path.realpath(path))
    mode = _mode_to_keep(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".lmccheck-{uuid4().hex}.partial")
    try:
        os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        mode = stat.S_IMODE(partial.stat().st_mode) if mode is None else mode
        yield partial
        partial.chmod(mode)  # some writers put a private file of their own in its place
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, target)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise


def _mode_to_keep(target: Path) -> int | None:
    """Return the mode of the file to be replaced, None where there is none."""
    try:
        found = target.stat()
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, "is a folder", str(target))
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "is a device, a pipe or a socket, no file", str(target))
    if not os.access(target, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(target))
    return stat.S_IMODE(found.st_mode)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, see ``replacing``.

    Into a device or a pipe, and into a file that cannot be replaced where it is (mounted by itself, or in a folder that
    may not be written to), it is simply written.
    """
    try:
        if not is_stream(path):
            with replacing(path) as partial, open(partial, "wb") as file:
                file.write(content)
            return
    except OSError as error:
        if error.errno not in (errno.EBUSY, errno.EACCES, errno.EPERM) or not path.is_file():
            raise
    with open(path, "wb", buffering=0) as stream:
        written = memoryview(content)
        while written:
            written = written[stream.write(written) :]


def is_stream(path: Path) -> bool:
    """Whether a path is that of a device or a pipe, where nothing can be replaced."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return stat.S_ISCHR(mode) or stat.S_ISFIFO(mode)


def same_file(one: Path, other: Path) -> bool:
    """Whether two paths are one file: by links, by hard links, or by case where the file system knows no case."""
    try:
        return os.path.samefile(one, other)
    except OSError:
        return place_of(one) == place_of(other)


def place_of(path: Path) -> str:
    """Return what tells a path that may not exist from others: links followed, case folded where it does not count."""
    real = os.path.realpath(path)
    folder = next((parent for parent in Path(real).parents if os.path.exists(parent)), Path(real).anchor)
    swapped = str(folder).swapcase()
    caseless = swapped != str(folder) and os.path.exists(swapped) and os.path.samefile(swapped, folder)
    return real.casefold() if caseless else real


def overwritten(target: Path, inputs: Iterable[Path]) -> Path | None:
    """Return the first input that writing to ``target`` would destroy, or None."""
    return next((file for file in inputs if same_file(file, target)), None)


def unwritable(path: Path, error: Exception) -> str:
    """Return the line that says why a file or folder was not written."""
    reason = getattr(error, "strerror", None) or error
    return f"{shown_path(path)}: cannot be written: {reason}; mend: choose a folder that can be written to, with room"
