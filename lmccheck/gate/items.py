"""Items that leave a record of what they measured, whatever happens to them, and the manifest's own item."""

from __future__ import annotations

import dataclasses
import os
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from lmccheck.data.imports import place, say
from lmccheck.errors import LmcError, LmcWarning, ManifestError, printable
from lmccheck.gate.baseline import stale, stale_lines
from lmccheck.gate.options import options_of
from lmccheck.gate.selection import blank_manifest
from lmccheck.manifest.plan import Plan
from lmccheck.report.failure import reproduce_command
from lmccheck.report.record import NOT_MEASURED, CheckRecord


class Recorded(pytest.Item):
    """An item that leaves a record of what it measured, whatever happens to it."""

    record: CheckRecord | None = None

    def blank(self) -> CheckRecord:
        """Return the record as it stands before anything is measured."""
        raise NotImplementedError

    def reproduce(self, baseline: bool = False) -> str:
        """Return the command that repeats this item, beside the ``baseline``."""
        options = options_of(self.config)
        if not baseline or options.baseline is None:
            return command_of(self, options.reproducing_flags)
        file = os.path.relpath(options.baseline, self.config.invocation_params.dir)
        return command_of(self, [*options.reproducing_flags, f"--lmc-baseline={file}"])

    def remember(self, record: CheckRecord) -> None:
        """Keep a record, and its flat facts where JUnit and other plugins find them (once, also after a rerun)."""
        self.record = record
        self.user_properties[:] = [fact for fact in self.user_properties if not fact[0].startswith("lmc.")]
        self.user_properties.extend(record.properties())

    def conclude(self, call: pytest.CallInfo[None]) -> None:
        """Record an exception that no check foresaw, so that the item has its row."""
        if call.excinfo is None or call.when == "teardown":
            return
        if self.record is None or self.record.verdict == "pass" or call.when == "setup":
            error = call.excinfo.value
            if (reason := interruption(error)) is not None:
                self.remember(self.blank().unmeasured(reason))
                return
            text = str(error) if isinstance(error, LmcError) else say(error)
            self.remember(dataclasses.replace(self.blank(), verdict="error", text=text))

    def payload(self, report: pytest.TestReport) -> dict[str, Any] | None:
        """Return what the item's report carries to the process that writes reports: plain data."""
        if self.record is not None and (report.when == "call" or (report.when == "setup" and not report.passed)):
            return {"record": dataclasses.replace(self.record, blocking=report.failed).to_dict()}
        return None

    def retell(self, report: pytest.TestReport, call: pytest.CallInfo[None]) -> None:
        """Make a skip or an expected failure a failure: what was selected is measured and passes, or is not green.

        A mistake found in setup or teardown gets its one line, too; pytest asks ``repr_failure`` of calls only.
        """
        if report.skipped and report.when != "teardown" and self.record is not None:
            report.outcome = "failed"
            if hasattr(report, "wasxfail"):
                del report.wasxfail
            if self.record.verdict == NOT_MEASURED:
                report.longrepr = printable(f"{NOT_MEASURED}: {self.record.text}")
        if call.excinfo is not None and call.when != "call" and isinstance(call.excinfo.value, LmcError):
            report.longrepr = str(call.excinfo.value)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """Show what the user can act on without a traceback; a bug keeps its own."""
        if isinstance(excinfo.value, (LmcError, LmcWarning)):
            return "\n".join([*getattr(excinfo.value, "__notes__", ()), str(excinfo.value)])
        return super().repr_failure(excinfo)


def command_of(item: pytest.Item, flags: Sequence[str]) -> str:
    """Return the command that repeats an item, from where the user typed the first."""
    names = item.nodeid.split("::")[1:]
    node = "::".join([os.path.relpath(item.path, item.config.invocation_params.dir), *names])
    return reproduce_command(node, flags)


def without_frames(error: LmcError, config: pytest.Config) -> LmcError:
    """Return an error that holds no frame, nor those it came from: frames hold the networks until the next test.

    With --tb=long, --tb=native or --full-trace the whole traceback is kept, as text, in its notes.
    """
    whole = config.getoption("tbstyle", "auto") in ("long", "native") or config.getoption("fulltrace", False)
    if whole and not getattr(error, "__notes__", None):
        error.add_note(printable("".join(traceback.format_exception(error)).rstrip()))
    for at in causes(error):
        at.__traceback__ = None
    return error


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and those it came from, each once: some say that they came from themselves."""
    seen: set[int] = set()
    at: BaseException | None = error
    while at is not None and id(at) not in seen:
        seen.add(id(at))
        yield at
        at = at.__cause__ or at.__context__


def interruption(error: BaseException) -> str | None:
    """Return what kept a check from being measured, where that is no error of lmccheck's or of the user's code."""
    if isinstance(error, Exception):
        return None
    for outcome, told in ((pytest.skip, "skipped"), (pytest.xfail, "xfailed"), (pytest.fail, "failed")):
        if isinstance(error, outcome.Exception):
            return f"{told}: {error.msg or 'no reason given'}{place(error)}"
    return say(error)


class ManifestItem(Recorded):
    """Inspects the files that a manifest names, from their headers only."""

    plan: Plan

    def blank(self) -> CheckRecord:
        blank = blank_manifest(self.nodeid, self.parent.nodeid if self.parent else "", self.plan)
        return dataclasses.replace(blank, reproduce=self.reproduce())

    def runtest(self) -> None:
        """Raise ``ManifestError`` with one line per problem."""
        from lmccheck.manifest.preflight import inspected

        found = inspected(self.plan)
        blank = dataclasses.replace(self.blank(), notes=found.notes)
        gone = stale(self.config, self.path, self.plan)
        blank = dataclasses.replace(blank, baseline={"stale": gone} if gone else {})
        self.remember(blank)
        if problems := [*found.problems, *stale_lines(self.config, gone)]:
            text = "\n".join(problems)
            self.remember(dataclasses.replace(blank, verdict="error", text=text))
            if not options_of(self.config).report_only:
                raise ManifestError(text)

    def reportinfo(self) -> tuple[Path, int, str]:
        return self.path, 0, f"{self.path.name}: manifest"
