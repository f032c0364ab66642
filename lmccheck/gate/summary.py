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

from lmccheck.gate.options import Options
from lmccheck.report.markdown import markdown
from lmccheck.report.matrix import matrices
from lmccheck.report.notes import notes, unreported
from lmccheck.report.record import CheckRecord
from lmccheck.report.table import table
from lmccheck.report.write import write_text


@dataclass
class Summary:
    """Records by node id (a rerun replaces the earlier one), collection errors, and lines to tell the user."""

    records: dict[str, CheckRecord] = field(default_factory=dict)
    errors: list[dict[str, str]] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)

    def receive(self, payload: Mapping[str, Any]) -> None:
        """Enter what one report carried: a record, or what became of a pair's aligned file."""
        if payload.get("record"):
            record = CheckRecord.from_dict(payload["record"])
            self.records[record.id] = record
        self.lines += payload.get("lines", ())

    @property
    def rows(self) -> list[CheckRecord]:
        """The records a reader wants to see: every check, and a manifest's own item only when it found a problem."""
        return [record for record in self.records.values() if record.pair or record.verdict != "pass"]

    def write(self, options: Options, exit_status: int, arguments: list[str]) -> bool:
        """Write every report that was asked for; return False if one could not be written."""
        outcomes = []
        summary = os.environ.get("GITHUB_STEP_SUMMARY") if self.rows else None
        if options.report_md or summary:
            text = markdown(self.rows, [error["message"] for error in self.errors], report_only=options.report_only)
            if options.report_md:
                outcomes.append(write_text("Markdown report", options.report_md, text))
            if summary:
                outcomes.append(write_text("Markdown summary", Path(summary), text + "\n", append=True))
        if options.report_json:
            status = exit_status if all(written for _, written in outcomes) else exit_status or 1
            outcomes.append(self._json(options, status, arguments))
        self.lines += [line for line, _ in outcomes]
        return all(written for _, written in outcomes)

    def _json(self, options: Options, exit_status: int, arguments: list[str]) -> tuple[str, bool]:
        import lmccheck
        from lmccheck.report.json import json

        assert options.report_json is not None
        text = json(
            list(self.records.values()),
            self.errors,
            version=lmccheck.__version__,
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            environment=run_environment(options, arguments),
            exit_status=exit_status,
        )
        return write_text("JSON report", options.report_json, text)

    def section(self, options: Options, width: int) -> Iterator[str]:
        """Yield the terminal section: the table, what it means, and where the files are."""
        if options.report_only and self.rows:
            yield "REPORT ONLY: nothing here fails the run"
            yield ""
        if self.rows:
            yield table(self.rows, options.table, width)
            yield ""
            for title, matrix in matrices(self.rows, options.table, width):
                yield title
                yield matrix
                yield ""
            yield from notes(self.rows)
            for text in unreported(self.rows) if options.report_only else ():
                yield ""
                yield text
        if self.lines:
            yield ""
            yield from self.lines


def run_environment(options: Options, arguments: list[str]) -> dict[str, Any]:
    """Return what the run was given; the device and torch's own facts come from the process that used them."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": options.device,
        "seed": options.seed,
        "profile": options.profile,
        "report_only": options.report_only,
        "arguments": arguments,
    }
