"""What ``assert result.passed`` is about: pytest shows some characters of a Result, the section below all its lines."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from lmccheck.result import Result

MOST = 3  # results of one assertion
SHOWN = 100  # characters of a Result that pytest shows at least, of its beginning and of its end


def explain_results(report: pytest.TestReport, call: pytest.CallInfo[None]) -> None:
    """Add to a failed assertion's report, below its traceback, what the results in it say in words."""
    if call.when != "call" or call.excinfo is None or not isinstance(call.excinfo.value, AssertionError):
        return
    if (add := getattr(report.longrepr, "addsection", None)) is not None:
        for result in _results(call.excinfo):
            add("lmccheck", "\n".join([*result.lines, *(f"note: {note}" for note in result.notes)]))


def _results(caught: pytest.ExceptionInfo[BaseException]) -> Iterator[Result]:
    """Yield the results that did not pass and that the assertion's text mentions, or stand beside one without text."""
    module = sys.modules.get("lmccheck.result")
    if module is None or not caught.traceback:
        return
    told, found = str(caught.value), {}
    for value in caught.traceback[-1].frame.f_locals.values():  # what an assertion computed is among them
        if isinstance(value, module.Result) and not value.passed:
            text = repr(value)
            ends = (part.replace("\n", "\\n") for part in (text[:SHOWN], text[-SHOWN:]))
            if not told or all(end in told for end in ends):
                found[id(value)] = value
    yield from list(found.values())[:MOST]
