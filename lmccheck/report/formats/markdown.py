"""The report as GitHub-flavoured Markdown: for a file, and for the summary page of a CI job."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmccheck.errors import printable
from lmccheck.report.formats import FORMATS, Format, Run, shown

if TYPE_CHECKING:
    from lmccheck.report.record import CheckRecord

TITLE = "## lmccheck"


def markdown(records: list[CheckRecord], run: Run) -> str:
    """Return a heading, the table, the notes, and in full every text of what did not pass."""
    from lmccheck.report.escape import code, escaped
    from lmccheck.report.matrix import matrices
    from lmccheck.report.notes import missing, notes
    from lmccheck.report.record import NOT_MEASURED, ordered
    from lmccheck.report.table import table

    rows = shown(records)
    parts = [TITLE]
    if not run.finished:
        parts.append("**NOT FINISHED: this run is still going on, or was killed.**")
    if lacking := missing(records):
        parts.append(f"**{lacking}.**")
    if run.report_only:
        parts.append("**REPORT ONLY: nothing here fails the run.**")
    if rows:
        parts.append(table(rows, "github"))
        parts += [f"{escaped(title)}\n\n{matrix}" for title, matrix in matrices(rows, "github")]
        parts.append("\n".join(f"- {escaped(line)}" for line in notes(rows)))
    elif not run.errors:
        parts.append("No check ran.")
    for record in ordered(rows):
        if record.text and record.verdict != NOT_MEASURED:  # whose reasons are among the notes
            parts.append(f"### {code(record.id)}\n\n{fenced(record.text)}")
    parts += [fenced(error["message"]) for error in run.errors]
    return "\n\n".join(part for part in parts if part) + "\n"


def fenced(text: str) -> str:
    """Return the text as a code block whose fence is longer than any run of backticks in it."""
    text, fence = printable(text), "```"
    while fence in text:
        fence += "`"
    return f"{fence}\n{text}\n{fence}"


FORMATS.add(
    "md",
    Format("md", "Markdown report", "write the report as Markdown ($GITHUB_STEP_SUMMARY gets it as well)", markdown),
    __name__,
)
