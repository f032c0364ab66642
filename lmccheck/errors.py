"""What went wrong, where, and how to mend it: every error a user can cause is one of these."""

from __future__ import annotations

import os
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path


class LmcError(Exception):
    """Base of every error lmccheck raises on purpose; its text is one line a user can act on."""


class ManifestError(LmcError):
    """The manifest is malformed: names the file, the key, what was found and what is expected."""


class CheckpointError(LmcError):
    """A checkpoint cannot be read, or does not fit its partner or its model."""


class SourceError(LmcError):
    """The model, the data or the loss named by the user cannot be used."""


class SymmetryError(LmcError):
    """A permutation spec is malformed or does not keep the network's function; it is never used."""


class UnsupportedArchitecture(LmcError):
    """The network is outside what the asked property or analysis can treat soundly."""


class DeviceError(LmcError):
    """The asked device does not exist or cannot be used."""


class LmcWarning(UserWarning):
    """A check marked ``severity = "warn"`` did not pass; shown in pytest's warnings summary."""


class VerdictError(LmcError, AssertionError):
    """A property did not hold; raised by ``Result.raise_for_verdict``."""


def shown_path(path: str | os.PathLike[str]) -> str:
    """Return a path as a reader would type it: relative to the current folder when it lies under it."""
    path = Path(path)
    return os.path.relpath(path) if path.is_absolute() and path.is_relative_to(Path.cwd()) else str(path)


def nearest(name: str, valid: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the closest valid name, or an empty string.

    >>> nearest("modle", ["model", "data"])
    " (did you mean 'model'?)"
    """
    found = get_close_matches(name, list(valid), n=1)
    return f" (did you mean {found[0]!r}?)" if found else ""
