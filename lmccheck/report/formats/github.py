"""What did not pass as annotations of GitHub Actions: beside the manifest's lines on the page of a pull request."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmccheck.report.formats import FORMATS, Format, Run

if TYPE_CHECKING:
    from lmccheck.report.record import CheckRecord

MOST = 9  # of each kind: GitHub shows ten a step, and one that says how many were left out has to be among them
WORST = ("error", "fail", "not measured", "inconclusive")


def github(records: list[CheckRecord], run: Run) -> str:
    """Return workflow commands, a line each, the worst first: an error, or a warning where nothing is to fail."""
    from lmccheck.report.record import ordered

    lines = []
    for level in ("error", "warning"):
        rows = [row for row in ordered(records) if row.verdict != "pass" and (level == "error") == row.blocking]
        rows.sort(key=lambda row: WORST.index(row.verdict) if row.verdict in WORST else len(WORST))
        shown = rows if len(rows) <= MOST else rows[: MOST - 1]
        for row in shown:
            place = f"file={_escaped(row.manifest, True)},line={max(row.line, 1)}"
            told = row.text or row.verdict
            lines.append(f"::{level} {place},title={_escaped(f'{row.id} {row.verdict}', True)}::{_escaped(told)}")
        if len(rows) > len(shown):
            lines.append(f"::{level} title=lmccheck::{len(rows) - len(shown)} more did not pass: see the report")
    return "".join(f"{line}\n" for line in lines)


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
