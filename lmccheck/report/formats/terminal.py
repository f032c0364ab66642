"""The section that pytest prints at the end: the table, the matrices of sets, and what both mean."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmccheck.report.formats import FORMATS, Format, Run, shown

if TYPE_CHECKING:
    from lmccheck.report.record import CheckRecord


def terminal(records: list[CheckRecord], run: Run) -> str:
    """Return the section, empty where there is nothing to show; texts of failures only where pytest shows none."""
    from lmccheck.report.matrix import matrices
    from lmccheck.report.notes import missing, notes, unreported
    from lmccheck.report.table import table

    rows = shown(records)
    if not rows:
        return ""
    head = [lacking] if (lacking := missing(records)) else []
    head += ["REPORT ONLY: nothing here fails the run"] if run.report_only else []
    matrix = [f"{title}\n{drawn}" for title, drawn in matrices(rows, run.table, run.width)]
    texts = unreported(rows) if run.report_only else []
    return "\n\n".join([*head, table(rows, run.table, run.width), *matrix, "\n".join(notes(rows)), *texts])


FORMATS.add(
    "terminal",
    Format("terminal", "Terminal section", "printed at the end of every run", terminal, to_file=False),
    __name__,
)
