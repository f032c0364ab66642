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
from lmccheck.report.formats import FORMATS, Run
from lmccheck.report.record import CheckRecord
from lmccheck.report.write import write_reports


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

    def write(self, options: Options, exit_status: int, arguments: list[str]) -> bool:
        """Write every report that was asked for; return False if one could not be written."""
        import lmccheck

        records = list(self.records.values())
        run = Run(
            errors=self.errors,
            report_only=options.report_only,
            version=lmccheck.__version__,
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            environment=run_environment(options, arguments),
            exit_status=exit_status,
        )
        summary = os.environ.get("GITHUB_STEP_SUMMARY")
        outcomes = write_reports(options.reports, records, run, summary=Path(summary) if summary else None)
        self.lines += [line for line, _ in outcomes]
        return all(written for _, written in outcomes)

    def section(self, options: Options, width: int) -> Iterator[str]:
        """Yield the terminal section: the table, what it means, and where the files are."""
        run = Run(report_only=options.report_only, table=options.table, width=width)
        yield from FORMATS.get("terminal").render(list(self.records.values()), run).splitlines()
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
