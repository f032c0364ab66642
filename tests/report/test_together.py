"""What several checks of populations come to together, in every report."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pages import RUN, record

from lmccheck.report.formats import FORMATS
from lmccheck.report.notes import together_of


def checks(*confidences: float, **more: Any) -> list[Any]:
    """Return records of checks that were decided by populations."""
    told = ({"population": {"decides": True, "confidence": confidence}} for confidence in confidences)
    return [record(id=f"lmc.toml::p{k}::c", details=details, **more) for k, details in enumerate(told)]


def test_wrong_verdicts_to_expect_are_the_sum_of_what_each_allows() -> None:
    """40 at 95 %: two; with 1 − 0.05/40 in each it is 5 % for all of them."""
    found = together_of(checks(*[0.95] * 40))
    assert found is not None
    assert (found["checks"], found["wrong_at_most"]) == (40, pytest.approx(2.0))
    assert found["confidence_of_each"] == pytest.approx(1 - 0.05 / 40)
    mixed = together_of(checks(0.9, 0.99))
    assert mixed is not None
    assert mixed["wrong_at_most"] == pytest.approx(0.11)


def test_one_check_and_checks_of_the_data_are_no_family() -> None:
    """There is nothing to add up."""
    assert together_of(checks(0.95)) is None
    plain = [record(details={"population": {"decides": False, "confidence": 0.95}}) for _ in range(3)]
    assert together_of([*plain, record()]) is None


@pytest.mark.parametrize("form", ["terminal", "md", "html", "json"])
def test_every_report_says_it(form: str) -> None:
    """The same line in each; a pass is then one of new data."""
    text = FORMATS.get(form).render(checks(0.95, 0.95, verdict="pass"), RUN)
    plain = text.replace("&#34;", '"').replace('\\"', '"')
    assert "about 0.1 wrong verdicts among them are to be expected at most" in plain
    if form == "json":
        assert json.loads(text)["population"]["checks"] == 2
    else:
        assert 'pass with decide = "population": the limit holds for new data' in plain
