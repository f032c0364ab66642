"""What a report keeps to itself: secrets among a command's arguments, and where on a machine a project lies."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any

HIDDEN = "***"
SECRET = re.compile(
    r"token|secret|passw|pwd|credential|authorization|(?:^|[-_.])auth(?:$|[-_.])|(?:^|[-_.]|api|access)key(?:s?$|[-_.])",
    re.IGNORECASE,
)
USER = re.compile(r"(?<=://)[^/@\s]+(?=@)")
KNOWN = re.compile(r"\b(?:gh[opsur]_|github_pat_|glpat-|hf_|sk-|xox[abprs]-|AKIA|eyJ)[\w.-]{8,}")
RANDOM = re.compile(r"[A-Za-z0-9+/]{20,}={0,2}")


def redacted(arguments: Sequence[str]) -> list[str]:
    """Return a command's arguments with what looks like a secret hidden: by its name, or by how it looks.

    >>> redacted(["--api-token", "abc", "-k", "mlp", "--url=https://me:pw@host/x", "-o", "my_key=1"])
    ['--api-token', '***', '-k', 'mlp', '--url=https://***@host/x', '-o', 'my_key=***']
    """
    told = []
    hide = False
    for argument in arguments:
        *names, value = argument.split("=")
        if hide and not argument.startswith("-"):
            told.append(HIDDEN)
        elif names and any(map(SECRET.search, names)):
            told.append("=".join([*names[: 1 + next(k for k, n in enumerate(names) if SECRET.search(n))], HIDDEN]))
        else:
            told.append("=".join([*names, _hidden(value)]))
        hide = not names and argument.startswith("--") and SECRET.search(value) is not None
    return told


def _hidden(text: str) -> str:
    text = KNOWN.sub(HIDDEN, USER.sub(HIDDEN, text))
    return RANDOM.sub(lambda found: HIDDEN if _random(found[0]) else found[0], text)


def _random(text: str) -> bool:
    """Whether a run of characters is no word and no path: digits among letters, and hardly a slash."""
    digits, letters = sum(c.isdigit() for c in text), sum(c.isalpha() for c in text)
    return digits >= 3 and letters >= 3 and text.count("/") <= len(text) // 20


def relative(value: Any, root: str) -> Any:
    """Return plain data in which paths below ``root`` are relative to it, and others, where they stand alone, too."""
    if not root or root == os.sep:
        return value
    if isinstance(value, dict):
        return {
            key: os.path.relpath(part, root)
            if key == "path" and isinstance(part, str) and os.path.isabs(part)
            else relative(part, root)
            for key, part in value.items()
        }
    if isinstance(value, list):
        return [relative(part, root) for part in value]
    if isinstance(value, str) and root in value:
        below = re.sub(rf"(?<![\w./-]){re.escape(root + os.sep)}(?=[^\s'\"])", "", value)
        return re.sub(rf"(?<![\w./-]){re.escape(root)}(?![\w.-])", ".", below)
    return value
