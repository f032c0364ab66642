"""The report as GitHub-flavoured Markdown: for a file, and for the summary page of a CI job."""

from __future__ import annotations

from collections.abc import Sequence

from lmccheck.report.matrix import matrices
from lmccheck.report.notes import notes
from lmccheck.report.record import CheckRecord, ordered
from lmccheck.report.table import table

TITLE = "## lmccheck"


def markdown(records: list[CheckRecord], errors: Sequence[str] = (), *, report_only: bool = False) -> str:
    """Return a heading, the table, the notes, and in full every text of what did not pass."""
    parts = [TITLE]
    if report_only:
        parts.append("**REPORT ONLY: nothing here fails the run.**")
    if records:
        parts.append(table(records, "github"))
        parts += [f"{title}\n\n{matrix}" for title, matrix in matrices(records, "github")]
        parts.append("\n".join(f"- {line}" for line in notes(records)))
    elif not errors:
        parts.append("No check ran.")
    for record in ordered(records):
        if record.text:
            parts.append(f"### `{record.id}`\n\n{fenced(record.text)}")
    parts += [fenced(error) for error in errors]
    return "\n\n".join(part for part in parts if part) + "\n"


def fenced(text: str) -> str:
    """Return the text as a code block whose fence is longer than any run of backticks in it."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}\n{text}\n{fence}"
