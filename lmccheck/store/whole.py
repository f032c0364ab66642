"""Files that are written whole or not at all, and never over what was read; no torch here."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4


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
