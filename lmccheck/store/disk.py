"""Files on disk: opened only where they are files, without waiting, and looked at again after they were read."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader, FileIO
from pathlib import Path
from typing import Any

from lmccheck.errors import CheckpointError, shown_path

BUFFER = 2**16  # bytes read at once where little is asked for: most headers
FRESH = 2 * 10**9  # nanoseconds; a file changed as shortly before it was read may change again within one tick
SMALL = 2**24  # bytes; up to here a file is read again rather than trusted to be as its times say

KINDS: tuple[tuple[Callable[[int], bool], str], ...] = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a FIFO (named pipe)"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a character device"),
    (stat.S_ISBLK, "a block device"),
)


@dataclass(frozen=True)
class Stamp:
    """What tells a file's state without reading it: which file it is, its size, and its times in nanoseconds."""

    device: int
    inode: int
    size: int
    modified: int
    changed: int

    @classmethod
    def of(cls, info: os.stat_result) -> Stamp:
        """Return the stamp of what ``os.stat`` or ``os.fstat`` said."""
        return cls(info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns)


@dataclass
class Held:
    """A file that was read: the SHA-256 of the bytes that were, and the file's state as they were."""

    path: Path
    sha256: str
    stamp: Stamp
    settled: bool  # whether it had been left alone for a while when it was read

    @classmethod
    def after(cls, path: Path, file: BufferedReader[Any], before: Stamp, sha256: str) -> Held:
        """Return what was read of an open file; raise ValueError where it changed since ``before``."""
        if (now := Stamp.of(os.fstat(file.fileno()))) != before:
            raise ValueError(
                f"{shown_path(path)}: changed while it was read, from {before.size} to {now.size} bytes or in place, "
                "expected a finished file; mend: run again when nothing writes to it"
            )
        return cls(path, sha256, before, time.time_ns() - max(before.modified, before.changed) > FRESH)

    def require_unchanged(self) -> None:
        """Raise CheckpointError unless the path still leads to the bytes that were read.

        The bytes are read again where the file's state differs, or cannot be trusted: small files, and young ones.
        """
        try:
            now = Stamp.of(os.stat(self.path))
            if now == self.stamp and self.settled and now.size > SMALL:
                return
            found = hashed(self.path)
        except FileNotFoundError:
            raise self._changed("it is gone") from None
        except (OSError, ValueError) as error:
            raise self._changed(f"it can no longer be read ({error})") from None
        if found.sha256 != self.sha256:
            raise self._changed(f"got {found.stamp.size} bytes of sha256 {found.sha256}")
        self.stamp, self.settled = found.stamp, found.settled

    def _changed(self, now: str) -> CheckpointError:
        return CheckpointError(
            f"{shown_path(self.path)}: changed after it was loaded: {now}, expected the {self.stamp.size} bytes of "
            f"sha256 {self.sha256} that were measured; mend: run again when nothing writes to it"
        )


@contextmanager
def opened(path: Path, expected: str = "a file") -> Iterator[BufferedReader[Any]]:
    """Open a regular file, links followed; what is no file is never waited for.

    Raises ValueError with one line for whatever cannot be opened; what reading it raises is the caller's.
    """
    try:
        _require_regular(path, os.stat(path).st_mode, expected)
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_BINARY", 0)
        descriptor = os.open(path, flags)
    except OSError as error:
        raise ValueError(f"{shown_path(path)}: {_reason(path, error, expected)}") from None
    except ValueError as error:  # a NUL in the path
        if "null" not in str(error):
            raise
        raise ValueError(
            f"{shown_path(path)}: got a path with a NUL in it, expected {expected}; mend: correct the path"
        ) from None
    with BufferedReader(FileIO(descriptor), BUFFER) as file:
        _require_regular(path, os.fstat(descriptor).st_mode, expected)  # what it is now may be another
        yield file


def hashed(path: Path) -> Held:
    """Return a file's SHA-256 and state; raise ValueError with one line."""
    try:
        with opened(path) as file:
            before = Stamp.of(os.fstat(file.fileno()))
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            return Held.after(path, file, before, sha256)
    except OSError as error:
        raise ValueError(f"{shown_path(path)}: {_reason(path, error, 'a file')}") from None


def read_bytes(path: Path, expected: str, most: int) -> tuple[bytes, Held]:
    """Return all bytes of a file that has at most ``most``, and its state; raise ValueError with one line."""
    try:
        with opened(path, expected) as file:
            before = Stamp.of(os.fstat(file.fileno()))
            raw = file.read(most + 1)
            if len(raw) > most:
                raise ValueError(
                    f"{shown_path(path)}: got {max(before.size, len(raw))} bytes, expected {expected} of at most {most}"
                    "; mend: name the right file"
                )
            return raw, Held.after(path, file, before, hashlib.sha256(raw).hexdigest())
    except OSError as error:
        raise ValueError(f"{shown_path(path)}: {_reason(path, error, expected)}") from None


def _require_regular(path: Path, mode: int, expected: str) -> None:
    if stat.S_ISREG(mode):
        return
    kind = next((name for test, name in KINDS if test(mode)), "something that is no file")
    mend = "name the file inside it" if stat.S_ISDIR(mode) else "name a file on disk"
    raise ValueError(f"{shown_path(path)}: got {kind}, expected {expected}; mend: {mend}")


def _reason(path: Path, error: OSError, expected: str) -> str:
    if isinstance(error, FileNotFoundError):
        if path.is_symlink():
            return f"a link to {os.readlink(path)!r}, which is not there, expected {expected}; mend: restore its target"
        return f"no such file, expected {expected}; mend: correct the path"
    if error.errno == errno.ELOOP:
        return f"a link that leads back to itself, expected {expected}; mend: correct the link"
    return f"cannot be read: {error.strerror or error}; mend: check the path and its permissions"
