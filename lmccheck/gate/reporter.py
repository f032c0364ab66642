"""The hooks of the process that writes reports: what was selected, what came of it, and how the run ended."""

from __future__ import annotations

import os
import signal
import threading
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from lmccheck.gate.options import MANIFESTS, REFUSED, USAGE_ERROR, Options, is_manifest, options_of

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import FrameType

    from lmccheck.gate.summary import Summary
    from lmccheck.report.record import CheckRecord

TERMINATED = "terminated (SIGTERM)"


class Reporter:
    """Gathers records where reports arrive: in the only process, or in xdist's controller."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.session: pytest.Session | None = None
        self.terminated = self.ending = self.handles = False
        self.stale: dict[Path, str] = {}  # files of earlier runs that this one removed, and why
        self.leave = os._exit

    @cached_property
    def summary(self) -> Summary:
        from lmccheck.gate.summary import Summary

        return Summary(root=str(self.config.rootpath))

    @property
    def used(self) -> bool:
        """Whether this run has anything to do with manifests; a run without any stays untouched."""
        return options_of(self.config).models or bool(self.config.stash[MANIFESTS]) or "summary" in self.__dict__

    @property
    def options(self) -> Options:
        """The options, without those reports that would overwrite an input or one another."""
        options, refused = options_of(self.config), self.config.stash[REFUSED]
        return replace(options, reports={n: path for n, path in options.reports.items() if path not in refused})

    @property
    def arguments(self) -> list[str]:
        return [str(argument) for argument in self.config.invocation_params.args]

    def pytest_sessionstart(self, session: pytest.Session) -> None:
        self.session = session

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection(self) -> None:
        """Replace reports of earlier runs where they are known to be such; other files may be inputs, told later."""
        if self.options.models and not self.config.getoption("collectonly"):
            self.summary.announce(self.options, self.arguments, only_reports=True)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Note what was selected, after all who deselect; xdist's controller selects nothing itself."""
        if self.config.stash[MANIFESTS]:
            from lmccheck.gate.items import Recorded

            self.begin({item.nodeid: item.blank() for item in session.items if isinstance(item, Recorded)})

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: list[str]) -> None:
        """Note what the workers selected, at the first that tells."""
        if any(is_manifest(Path(part)) for id in ids for part in (id.rsplit("::", 1)[0], id.rsplit("::", 2)[0])):
            from lmccheck.gate.selection import blanks_of

            self.begin(blanks_of(ids, self.config.rootpath))

    def begin(self, blanks: dict[str, CheckRecord]) -> None:
        """Replace the reports of earlier runs before anything runs, and be ready to be terminated."""
        if not blanks or self.summary.selection.blanks or self.config.getoption("collectonly"):
            return
        profile = self.options.profile
        self.summary.selection.blanks = {id: replace(blank, profile=profile) for id, blank in blanks.items()}
        self.summary.announce(self.options, self.arguments)
        self.remove_stale(blanks.values())
        main = threading.current_thread() is threading.main_thread()
        if main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, self.terminate)
            self.handles = True
        self.leave, os._exit = os._exit, partial(self.left, os.getpid())

    def remove_stale(self, blanks: Iterable[CheckRecord]) -> None:
        """Remove what earlier runs left of the selected checks, so that nothing stays that this run does not write."""
        from lmccheck.gate.outputs import remove_stale, remove_stale_curves

        if (folder := self.options.aligned_dir) is not None:
            self.stale |= dict.fromkeys(remove_stale(folder, blanks), "it did not pass now")
        if (folder := self.options.curves_dir) is not None:
            self.stale |= dict.fromkeys(remove_stale_curves(folder, blanks), "no curve was measured now")

    def terminate(self, number: int, frame: FrameType | None) -> None:
        """End the run as Ctrl-C does, with its reports; also where the code that runs holds on to the interrupt."""
        self.terminated = True
        if self.session is not None:
            self.session.shouldstop = TERMINATED
        if not self.ending:
            raise KeyboardInterrupt(TERMINATED)

    def left(self, process: int, status: int) -> NoReturn:
        """Leave as ``os._exit`` does; where that ends the run itself before its end, not with the status of success."""
        ended = self.ending or os.getpid() != process
        self.leave(status if ended else status or int(pytest.ExitCode.INTERRUPTED))

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        if self.used:
            self.summary.selection.running.add(nodeid)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        if self.used:
            self.summary.selection.running.discard(nodeid)
            self.summary.selection.finished.add(nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if payload := getattr(report, "lmc", None):
            self.summary.receive(payload)
        elif self.used and report.failed and report.when not in ("setup", "call", "teardown"):  # its worker is gone
            *_, reason = report.longreprtext.strip().split("\n")  # below a line on the worker's platform
            self.summary.selection.lost[report.nodeid] = reason

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed and is_manifest(Path(report.nodeid)):
            self.summary.errors.append({"id": report.nodeid, "message": report.longreprtext})

    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        """Hear why the run ends: Ctrl-C, ``pytest.exit``, errors of collection, as many failures as were allowed."""
        self.stop(excinfo.value)

    def pytest_internalerror(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        self.stop(excinfo.value)

    def stop(self, error: BaseException) -> None:
        if self.used and not self.summary.selection.stopped:
            from lmccheck.data.imports import place, say

            said = str(error) if isinstance(error, KeyboardInterrupt) and str(error) else say(error)
            self.summary.selection.stopped = TERMINATED + place(error) if self.terminated else said

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Write the reports; a check not measured, or a report that cannot be written, turns a green run red."""
        self.ending = True
        if problem := self.config.stash.get(USAGE_ERROR, None):
            session.exitstatus = pytest.ExitCode.USAGE_ERROR
            self.summary.lines.append(f"ERROR: {problem}")
        if self.used and not self.config.getoption("collectonly"):
            gone = {path: why for path, why in self.stale.items() if not os.path.exists(path)}
            self.summary.lines += [f"{path}, of an earlier run, was removed: {why}" for path, why in gone.items()]
            early = session.shouldfail or session.shouldstop
            self.summary.selection.stopped = self.summary.selection.stopped or (str(early) if early else "")
            session.exitstatus = self.summary.status(int(session.exitstatus), self.options.report_only)
            kept = all([self.keep_baseline(int(session.exitstatus)), self.summary.keep_history(self.options)])
            page = os.environ.get("GITHUB_STEP_SUMMARY")
            summary = self.config.invocation_params.dir / page if page else None
            written = self.summary.write(self.options, int(session.exitstatus), self.arguments, summary)
            if not (written and kept) and session.exitstatus == pytest.ExitCode.OK:
                session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def keep_baseline(self, status: int) -> bool:
        """Write the baseline where that was asked for; return False where it should have been and was not."""
        from lmccheck.gate.baseline import baseline_line, updates, write_baseline

        if not updates(self.options) or USAGE_ERROR in self.config.stash:
            self.summary.lines += baseline_line(self.config, self.summary.rows)
            return True
        complete = status in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED) and not self.summary.errors
        line, written = write_baseline(self.config, self.summary.rows, complete)
        self.summary.lines.append(line)
        return written

    def pytest_unconfigure(self) -> None:
        os._exit = self.leave
        if self.handles and signal.getsignal(signal.SIGTERM) == self.terminate:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    @pytest.hookimpl(tryfirst=True)
    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if not self.used:
            return
        width = self.config.get_terminal_writer().fullwidth
        lines = list(self.summary.section(self.options, width))
        if lines:
            terminalreporter.write_sep("=", "lmccheck")
            for line in lines:
                terminalreporter.write_line(line)
