"""Folders for what a process needs while it runs: gone with it, and where it was killed, with the next that makes one.

A folder's owner holds a lock on it, which the system lets go of however the owner ends. What nobody holds is left over.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # on Windows: nothing is locked, so that nothing is taken for left over
    fcntl = None  # type: ignore[assignment]  # a module elsewhere

OWNER = ".lmccheck-owner"  # the file that is locked
PREFIX = "lmccheck-"
_held: dict[Path, int] = {}  # descriptors of the locks of this process


def new_scratch(what: str) -> Path:
    """Return a new folder below TMPDIR, ``lmccheck-WHAT-…``; what killed processes left there is removed.

    ``drop_scratch`` removes it. Raises OSError.
    """
    place = Path(tempfile.gettempdir())
    remove_left_over(place)
    hidden = Path(tempfile.mkdtemp(prefix=f".{PREFIX}", dir=place))  # under a name that nobody looks at, until locked
    (hidden / OWNER).touch()
    lock = hold(hidden / OWNER)
    folder = place / f"{PREFIX}{what}-{hidden.name.removeprefix(f'.{PREFIX}')}"
    hidden.rename(folder)
    _held[folder] = lock
    return folder


def drop_scratch(folder: Path) -> None:
    """Remove a folder of ``new_scratch``."""
    shutil.rmtree(folder, ignore_errors=True)
    if (lock := _held.pop(folder, None)) is not None:
        os.close(lock)


@contextmanager
def scratch(what: str) -> Iterator[Path]:
    """Give a folder of ``new_scratch`` for as long as the block lasts."""
    folder = new_scratch(what)
    try:
        yield folder
    finally:
        drop_scratch(folder)


def remove_left_over(place: Path) -> None:
    """Remove the folders in ``place`` that a process made by ``new_scratch`` and was killed before it removed them."""
    for owner in place.glob(f"{PREFIX}*/{OWNER}"):
        if not owner.is_symlink() and left_over(owner):
            shutil.rmtree(owner.parent, ignore_errors=True)


def hold(path: Path) -> int:
    """Lock a file or a folder for as long as the descriptor that is returned stays open."""
    lock = os.open(path, os.O_RDONLY)
    if fcntl is not None:
        fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


def left_over(path: Path) -> bool:
    """Whether nobody holds the lock on a file or a folder; another user's counts as held."""
    if fcntl is None:
        return False
    with suppress(OSError):
        if path.stat().st_uid != os.getuid():
            return False
        lock = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        finally:
            os.close(lock)
        return True
    return False
