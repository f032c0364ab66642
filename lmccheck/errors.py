"""What went wrong, where, and how to mend it: every error a user can cause is one of these."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

LONGEST = 500  # characters of a line; of a longer one the middle is left out: it ends with the mend
COMMAND = re.compile(r"^\s*(?=::)|#(?=#\[)", re.MULTILINE)  # before what makes a line of a CI log a command


class LmcError(Exception):
    """Base of every error lmccheck raises on purpose; its text is one line a user can act on.

    Whatever names, paths and other people's errors are part of it, it shows as one line of printable characters.
    """

    lines = False  # whether its text may be several lines, each of them as long as one
    longest = LONGEST

    def __init__(self, *told: object) -> None:
        super().__init__(*(self._shown(part) if isinstance(part, str) else part for part in told))

    def _shown(self, text: str) -> str:
        lines = text.split("\n") if self.lines else [text]
        return "\n".join(one_line(line, self.longest) for line in lines)


class ManifestError(LmcError):
    """The manifest is malformed: names the file, the key, what was found and what is expected, a line each."""

    lines = True


class CheckpointError(LmcError):
    """A checkpoint cannot be read, or does not fit its partner or its model."""


class SourceError(LmcError):
    """The model, the data or the loss named by the user cannot be used."""


class SymmetryError(LmcError):
    """A permutation spec is malformed or does not keep the network's function; it is never used."""

    lines = True


class WitnessError(CheckpointError, SymmetryError):
    """A saved path or dropped network is whole, and is not what it says it is."""


class UnsupportedArchitecture(LmcError):
    """The network is outside what the asked property or analysis can treat soundly."""


class DeviceError(LmcError):
    """The asked device does not exist or cannot be used."""


class LmcWarning(UserWarning):
    """A check marked ``severity = "warn"`` did not pass; shown in pytest's warnings summary."""

    def __init__(self, *told: object) -> None:
        super().__init__(*(printable(part) if isinstance(part, str) else part for part in told))


class VerdictError(LmcError, AssertionError):
    """A property did not hold; raised by ``Result.raise_for_verdict``."""

    lines = True
    longest = 8 * LONGEST  # the command that shows it again is of use only whole


def printable(text: str) -> str:
    r"""Return a text that nobody's names or errors make a terminal, a CI log or a file misread; lines stay lines.

    What is not printable (control characters, invisible marks, halves of characters) is shown escaped.

    >>> printable("head\x1b[2J.bias\n::error::x"), printable("層.重み")
    ('head\\x1b[2J.bias\n\\::error::x', '層.重み')
    """
    if not text.isprintable():
        text = "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)
    return COMMAND.sub(r"\g<0>\\", text) if "::" in text or "##[" in text else text


def one_line(text: str, longest: int = LONGEST) -> str:
    r"""Return a text as ``printable`` does, on one line of at most 500 characters.

    >>> one_line("a\nb")
    'a\\nb'
    """
    text = printable(text.strip("\n")).replace("\n", "\\n")
    return text if len(text) <= longest else f"{text[: longest - 203]} … {text[-200:]}"


def shown_path(path: str | os.PathLike[str]) -> str:
    """Return a path as a reader would type it: relative to the current folder when it lies under it."""
    path = Path(path)
    try:
        here = Path.cwd()
    except OSError:  # the current folder is gone
        return one_line(str(path))
    return one_line(os.path.relpath(path) if path.is_absolute() and path.is_relative_to(here) else str(path))


def nearest(name: str, valid: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the closest valid name, or an empty string.

    >>> nearest("modle", ["model", "data"])
    " (did you mean 'model'?)"
    """
    found = get_close_matches(name, list(valid), n=1)
    return f" (did you mean {found[0]!r}?)" if found else ""
