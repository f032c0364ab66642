"""The report as GitHub-flavoured Markdown: for a file, and for the summary page of a CI job."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmccheck.errors import printable
from lmccheck.report.formats import FORMATS, PAGE, Format, Run, shown

if TYPE_CHECKING:
    from lmccheck.report.record import CheckRecord

TITLE = "## lmccheck"
SPARE = 200  # bytes for the line that says what does not fit


def markdown(records: list[CheckRecord], run: Run) -> str:
    """Return what was decided, a table of what did not pass, one of what did, folded, notes, every failure's text.

    It is never larger than GitHub shows, or than the room that is left: texts are left out, and then rows, those that
    passed first; how many is said.
    """
    from lmccheck.report.escape import code
    from lmccheck.report.record import NOT_MEASURED, ordered

    rows, most = ordered(shown(records)), PAGE if run.most is None else run.most
    shortened = rows
    parts = _head(records, shortened, run)
    while _bytes(parts) > most - SPARE and shortened:
        shortened = shortened[: len(shortened) // 2]
        parts = _head(records, shortened, run)
    if len(shortened) < len(rows):
        return _joined([*parts, f"{len(rows) - len(shortened)} more rows do not fit this page: see the report files."])
    texts = [
        f"### {code(record.id)}\n\n{fenced(record.text)}"
        for record in rows
        if record.text and record.verdict != NOT_MEASURED  # whose reasons are among the notes
    ]
    texts += [fenced(error["message"]) for error in run.errors]
    for k, text in enumerate(texts):
        if _bytes([*parts, text]) > most - SPARE:
            parts.append(f"{len(texts) - k} more texts do not fit this page: see the report files.")
            break
        parts.append(text)
    return _joined(parts)


def _head(records: list[CheckRecord], rows: list[CheckRecord], run: Run) -> list[str]:
    """Return what stands above the texts: what was decided of all records, tables of some rows, and their notes."""
    from lmccheck.report.escape import escaped
    from lmccheck.report.notes import decided, missing, notes

    parts = [TITLE, f"**{decided(shown(records), run)}.**"]
    if not run.finished:
        parts.append("**NOT FINISHED: this run is still going on, or was killed.**")
    if lacking := missing(records):
        parts.append(f"**{lacking}.**")
    if run.report_only:
        parts.append("**REPORT ONLY: nothing here fails the run.**")
    parts += _tables([row for row in rows if row.verdict != "pass"])
    if passed := [row for row in rows if row.verdict == "pass"]:
        parts += [f"<details><summary>{len(passed)} passed</summary>", *_tables(passed), "</details>"]
    if rows:
        parts.append("\n".join(f"- {escaped(line)}" for line in notes(rows, records)))
    return parts


def _tables(rows: list[CheckRecord]) -> list[str]:
    """Return the table of some rows, and the matrices of those that have one."""
    from lmccheck.report.escape import escaped
    from lmccheck.report.matrix import matrices
    from lmccheck.report.table import table

    drawn = [f"{escaped(title)}\n\n{matrix}" for title, matrix in matrices(rows, "github")]
    return [table(rows, "github"), *drawn] if rows else []


def _joined(parts: list[str]) -> str:
    return "\n\n".join(part for part in parts if part) + "\n"


def _bytes(parts: list[str]) -> int:
    return len(_joined(parts).encode(errors="backslashreplace"))


def fenced(text: str) -> str:
    """Return the text as a code block whose fence is longer than any run of backticks in it."""
    text, fence = printable(text), "```"
    while fence in text:
        fence += "`"
    return f"{fence}\n{text}\n{fence}"


FORMATS.add(
    "md",
    Format(
        "md",
        "Markdown report",
        "write the report as Markdown ($GITHUB_STEP_SUMMARY gets it as well)",
        markdown,
        known=lambda head: head.startswith(TITLE.encode()),
    ),
    __name__,
)
