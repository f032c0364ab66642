"""Items that leave a record of what they measured, whatever happens to them, and the manifest's own item."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from lmccheck.errors import LmcError, LmcWarning, ManifestError
from lmccheck.gate.options import options_of
from lmccheck.manifest.plan import Plan
from lmccheck.report.record import CheckRecord


class Recorded(pytest.Item):
    """An item that leaves a record of what it measured, whatever happens to it."""

    record: CheckRecord | None = None

    def blank(self) -> CheckRecord:
        """Return the record as it stands before anything is measured."""
        raise NotImplementedError

    def remember(self, record: CheckRecord) -> None:
        """Keep a record, and its flat facts where JUnit and other plugins find them (once, also after a rerun)."""
        self.record = record
        self.user_properties[:] = [fact for fact in self.user_properties if not fact[0].startswith("lmc.")]
        self.user_properties.extend(record.properties())

    def conclude(self, call: pytest.CallInfo[None]) -> None:
        """Record an exception that no check foresaw, so that the item has its row."""
        if call.excinfo is None or call.when == "teardown" or call.excinfo.errisinstance(pytest.skip.Exception):
            return
        if self.record is None or self.record.verdict == "pass":
            error = call.excinfo.value
            text = str(error) if isinstance(error, LmcError) else f"{type(error).__name__}: {error}"
            self.remember(dataclasses.replace(self.blank(), verdict="error", text=text))

    def payload(self, report: pytest.TestReport) -> dict[str, Any] | None:
        """Return what the item's report carries to the process that writes reports: plain data."""
        if self.record is not None and (report.when == "call" or (report.when == "setup" and not report.passed)):
            return {"record": dataclasses.replace(self.record, blocking=report.failed).to_dict()}
        return None

    def retell(self, report: pytest.TestReport, call: pytest.CallInfo[None]) -> None:
        """Give a mistake found in setup or teardown its one line too; pytest asks ``repr_failure`` of calls only."""
        if call.excinfo is not None and call.when != "call" and isinstance(call.excinfo.value, LmcError):
            report.longrepr = str(call.excinfo.value)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """Show what the user can act on without a traceback; a bug keeps its own."""
        if isinstance(excinfo.value, (LmcError, LmcWarning)):
            return str(excinfo.value)
        return super().repr_failure(excinfo)


class ManifestItem(Recorded):
    """Inspects the files that a manifest names, from their headers only."""

    plan: Plan

    def blank(self) -> CheckRecord:
        return CheckRecord(
            id=self.nodeid,
            manifest=self.parent.nodeid if self.parent else "",
            manifest_sha256=self.plan.sha256,
            pair="",
            check="manifest",
            property="manifest",
            severity="fail",
            verdict="pass",
            blocking=True,
        )

    def runtest(self) -> None:
        """Raise ``ManifestError`` with one line per problem."""
        from lmccheck.manifest.preflight import problems

        self.remember(self.blank())
        if found := problems(self.plan):
            text = "\n".join(found)
            self.remember(dataclasses.replace(self.blank(), verdict="error", text=text))
            if not options_of(self.config).report_only:
                raise ManifestError(text)

    def reportinfo(self) -> tuple[Path, int, str]:
        return self.path, 0, f"{self.path.name}: manifest"
