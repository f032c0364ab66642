"""A check that failed early, in every report: how it is known, what its interval is, that its value is an estimate."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from pages import RUN, record

from lmccheck.gate.witnesses import curve_lines
from lmccheck.report.formats import FORMATS
from lmccheck.report.notes import meanings

KNOWN = "settled after 53 of 10,000 samples (a wrong fail is less likely than 1 in a million)"


def early(**more: Any) -> Any:
    """Return a record of one."""
    details = {"early": {"error": 1e-6, "after": 53, "of": 10_000}}
    told = {"verdict": "fail", "known": KNOWN, "details": details, "interval": [0.0712, math.inf], "curve": {}}
    return record(**{**told, **more})


@pytest.mark.parametrize("form", ["md", "html", "json"])
def test_reports_say_when_it_was_settled_and_how_far_its_value_is_known(form: str) -> None:
    text = FORMATS.get(form).render([early()], RUN)
    assert KNOWN in text
    if form == "json":
        (check,) = json.loads(text)["checks"]
        assert (check["interval"], check["details"]["early"]["after"]) == ([0.0712, "inf"], 53)
    else:
        assert "settled early: the limit is exceeded, as surely as each says; values are estimates" in text
    if form == "html":
        assert "at least 0.0712" in text


def test_other_fails_are_no_estimates() -> None:
    assert not any("early" in line for line in meanings([early(details={})]))


def test_a_curve_that_was_not_measured_is_said_to_be_none(tmp_path: Path) -> None:
    (line,) = curve_lines(early(pair="p", check="c"), tmp_path)
    assert line == "curve of p::c not written: it failed early, at one point"
