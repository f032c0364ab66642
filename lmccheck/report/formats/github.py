"""What did not pass as annotations of GitHub Actions: beside the manifest's lines on the page of a pull request."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from lmccheck.report.formats import FORMATS, Format, Run

if TYPE_CHECKING:
    from lmccheck.report.record import CheckRecord

MOST = 9  # GitHub shows ten of a kind a step, and one that says how many were left out has to be among them
WORST = ("error", "fail", "not measured", "inconclusive")


def github(records: list[CheckRecord], run: Run) -> str:
    """Return workflow commands, nine lines at most: what fails the run before what only warns, the worst first."""
    rows = sorted((row for row in records if row.verdict != "pass"), key=_standing)
    lines = []
    for row in rows if len(rows) <= MOST else rows[: MOST - 1]:
        place = f"file={_escaped(row.manifest, True)},line={max(row.line, 1)}"
        title = _escaped(f"{row.id} {row.verdict}", True)
        lines.append(f"::{_level(row)} {place},title={title}::{_escaped(row.text or row.verdict)}")
    if left := rows[len(lines) :]:
        lines.append(f"::{_level(left[0])} title=lmccheck::{len(left)} more did not pass: see the report")
    return "".join(f"{line}\n" for line in lines)


def _level(row: CheckRecord) -> str:
    return "error" if row.blocking else "warning"


def _standing(row: CheckRecord) -> tuple[bool, int, float, str]:
    """Return what sorts the worst to the front: what fails the run, how it ended, by how many times the limit."""
    ended = WORST.index(row.verdict) if row.verdict in WORST else len(WORST)
    value, limit = row.value, row.limit
    times = 0.0 if value is None or limit is None else value / limit if limit > 0 else math.inf
    return not row.blocking, ended, -math.inf if math.isnan(times) else -times, row.id


def _escaped(text: str, of_property: bool = False) -> str:
    """Return a text as GitHub reads it in a workflow command.

    >>> _escaped("50%: a, b", True)
    '50%25%3A a%2C b'
    """
    signs = {"%": "%25", "\r": "%0D", "\n": "%0A"} | ({":": "%3A", ",": "%2C"} if of_property else {})
    return "".join(signs.get(sign, sign) for sign in text)


FORMATS.add(
    "github",
    Format("github", "Annotations", "printed in GitHub Actions", github, to_file=False),
    __name__,
)
