"""``assert result.passed`` in an ordinary test shows what a failed check shows."""

from __future__ import annotations

import pytest

TEST = """
from lmccheck.finding import End, Failure, Finding, Seen
from lmccheck.properties.judge import judge

def measured(value):
    seen = [Seen(value, "at t = 0.5")]
    failure = Failure("x-y", "too high", "barrier", "t = 0.5", "data d", seen, "points", next=["masks = 61"])
    ends = End("a", 0.1), End("b", 0.2)
    return judge("linear_connectivity", Finding(value, 0.1, "nats", endpoints=ends, failure=failure), 1.0)

other = measured(9.0)

def test_one():
    unrelated = other
    result = measured(0.7)
    assert result.passed

def test_two():
    assert measured(0.7).passed

def test_three():
    measured(0.7).raise_for_verdict()

def test_four():
    result = measured(0.7)
    assert 1 == 2

def helper(result):
    assert result.verdict == "pass", "not what was hoped for"
"""
SIX = [
    "linear_connectivity: fail: x-y: too high",
    "barrier 0.7 nats, limit 0.1 nats",
    "where: t = 0.5, on data d",
    "worst 0.7 at t = 0.5; smallest counterexample 0.7 at t = 0.5; 1 of 1 points above the limit",
    "endpoint losses: a 0.1, b 0.2 nats",
    "try next: masks = 61",
]


@pytest.mark.parametrize("name", ["test_one", "test_two"])
@pytest.mark.parametrize("style", ["auto", "short", "native"])
def test_an_assertion_on_a_result_shows_its_six_lines(project, name, style):
    """Whether the result has a name or not, in any style of traceback, and where nothing captured is shown."""
    project.pytester.makepyfile(TEST)
    result = project.run("-k", name, f"--tb={style}", "--show-capture=no")
    lines = result.outlines
    at = lines.index(SIX[0])
    assert lines[at : at + 6] == SIX
    assert lines.count(SIX[0]) == 1


def test_an_exception_on_a_verdict_shows_them_too(project):
    """As the lines of its own text."""
    project.pytester.makepyfile(TEST)
    result = project.run("-k", "test_three")
    result.stdout.fnmatch_lines([f"E *{SIX[0]}", *(f"E *{line}" for line in SIX[1:])])


def test_results_that_an_assertion_is_not_about_stay_out(project):
    """One that failed as it should stands beside an assertion on something else."""
    project.pytester.makepyfile(TEST)
    result = project.run("-k", "test_four")
    assert SIX[0] not in result.outlines
