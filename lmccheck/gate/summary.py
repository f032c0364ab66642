"""The summary of one pytest run: what the reports brought, the files written at the end, the terminal section.

Kept by the process that writes reports: the only one, or xdist's controller. Records reach it as plain data on the
items' reports, so nothing here differs between the two.
"""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmccheck.errors import LONGEST, LmcError, one_line
from lmccheck.gate.options import Options
from lmccheck.gate.selection import Selection
from lmccheck.report.formats import FORMATS, Run
from lmccheck.report.record import NOT_MEASURED, CheckRecord
from lmccheck.report.redact import redacted
from lmccheck.report.write import announce, is_report, write_reports

WHOLE = 8 * LONGEST  # characters of a line to be copied


@dataclass
class Summary:
    """Records by node id (a rerun replaces the earlier one), collection errors, and lines to tell the user."""

    records: dict[str, CheckRecord] = field(default_factory=dict)
    errors: list[dict[str, str]] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    whole: list[str] = field(default_factory=list)  # lines to be copied, of use only where nothing is left out
    selection: Selection = field(default_factory=Selection)
    root: str = ""

    @property
    def rows(self) -> list[CheckRecord]:
        """Every record, and a row for each selected check that left none."""
        return [*self.records.values(), *self.selection.unmeasured(self.records)]

    def status(self, status: int, report_only: bool) -> int:
        """Return the exit status: never 0 where a check was not measured, or must not be green whatever pytest says.

        Markers such as xfail, and other plugins, may have turned the outcome of an item.
        """
        wrong = any(row.verdict == NOT_MEASURED or not (row.green() or report_only) for row in self.rows) or bool(
            self.errors
        )
        return int(wrong) if status == 0 else status

    def receive(self, payload: Mapping[str, Any]) -> None:
        """Enter what one report carried: records, or what became of a pair's aligned file."""
        told = [payload["record"]] if payload.get("record") else []
        for record in map(CheckRecord.from_dict, [*told, *payload.get("records", ())]):
            self.records[record.id] = record
        self.lines += payload.get("lines", ())
        self.whole += payload.get("whole", ())

    def announce(self, options: Options, arguments: list[str], only_reports: bool = False) -> None:
        """Write at the start of the run what is to be found if it is killed; or only over earlier runs' reports."""
        reports = {n: path for n, path in options.reports.items() if not only_reports or is_report(path)}
        rows = [blank.unmeasured("the run has not finished") for blank in self.selection.blanks.values()]
        announce(reports, rows, self._run(options, arguments, None))

    def write(self, options: Options, exit_status: int, arguments: list[str], summary: Path | None) -> bool:
        """Write every report that was asked for; return False if one could not be written."""
        run = self._run(options, arguments, exit_status)
        outcomes = write_reports(options.reports, self.rows, run, summary=summary)
        self.lines += [line for line, _ in outcomes]
        return all(written for _, written in outcomes)

    def keep_history(self, options: Options) -> bool:
        """Add the run to the history where that was asked for; return False where it could not be."""
        if options.history is None or not self.rows:
            return True
        from lmccheck.report.history import add_run

        run = self._run(options, [], None)
        try:
            count = add_run(options.history, self.rows, Path(self.root), run.created, run.version)
        except LmcError as error:
            self.lines.append(f"not kept: {error}")
            return False
        self.lines.append(f"history: {count} row{'' if count == 1 else 's'} added to {options.history}")
        return True

    def _run(self, options: Options, arguments: list[str], exit_status: int | None) -> Run:
        import lmccheck

        return Run(
            errors=self.errors,
            report_only=options.report_only,
            version=lmccheck.__version__,
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            environment=run_environment(options, arguments),
            exit_status=exit_status,
            root=self.root,
        )

    def section(self, options: Options, width: int) -> Iterator[str]:
        """Yield the terminal section: the table, what it means, and where the files are."""
        run = Run(report_only=options.report_only, table=options.table, width=width)
        table = FORMATS.get("terminal").render(self.rows, run).splitlines()
        yield from table
        if self.lines or self.whole:
            yield from [""] if table else []
            yield from map(one_line, self.lines)
            yield from (one_line(line, WHOLE) for line in self.whole)
        if os.environ.get("GITHUB_ACTIONS") == "true":  # whose runner reads them from the log
            yield from FORMATS.get("github").render(self.rows, run).splitlines()


def run_environment(options: Options, arguments: list[str]) -> dict[str, Any]:
    """Return what the run was given; the device and torch's own facts come from the process that used them."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": options.device,
        "seed": options.seed,
        "profile": options.profile,
        "report_only": options.report_only,
        "arguments": redacted(arguments),
    }
