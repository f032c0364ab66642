"""``severity = "warn"``: a warning instead of a failure."""

from __future__ import annotations

import pytest


@pytest.fixture
def gate(project):
    """A failing pair that only warns."""
    project.manifest(project.pair("bad", value="2") + project.check("bad", limit=0.05, severity="warn"))
    return project


def test_a_failing_check_warns(gate):
    """The run is green, the warning carries the failure's text, and the table says fail."""
    result = gate.pytester.runpytest_inprocess("-p", "fakecore", "-W", "default", "--lmc-models")
    assert result.ret == pytest.ExitCode.OK
    result.assert_outcomes(passed=2, warnings=1)
    result.stdout.fnmatch_lines(
        [
            "*lmc.toml:7: LmcWarning: lmc.toml::bad::linear_connectivity",
            "*measured 2 nats, limit 0.05 nats",
            "bad *fail (warn)*",
        ]
    )


def test_warnings_as_errors_leave_it_a_warning(gate):
    """-W error is about other code's warnings: a check that only warns is not turned into one that fails."""
    result = gate.run("--lmc-models")
    assert result.ret == pytest.ExitCode.OK
    result.assert_outcomes(passed=2, warnings=1)
    result.stdout.fnmatch_lines(["*LmcWarning: lmc.toml::bad::linear_connectivity", "bad*fail (warn)*"])


def test_naming_the_warning_makes_it_fail(gate):
    """Who asks for this very warning as an error gets one, without a traceback."""
    result = gate.run("--lmc-models", "-W", "error::lmccheck.LmcWarning")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["measured 2 nats, limit 0.05 nats"])
    result.stdout.no_fnmatch_line("*Traceback*")


def test_an_error_is_not_softened(project):
    """What could not be measured fails, whatever the severity of its verdict."""
    project.manifest(project.pair("broken", **{"raise": "SourceError"}) + project.check("broken", severity="warn"))
    assert project.run("--lmc-models").ret == pytest.ExitCode.TESTS_FAILED


def test_nothing_warns_where_nothing_fails(gate):
    """Under --lmc-report-only the row says fail (warn), and no warning is added to the run."""
    result = gate.run("--lmc-models", "--lmc-report-only")
    result.assert_outcomes(passed=2, warnings=0)
    result.stdout.fnmatch_lines(["bad*fail (warn)*"])
    result.stdout.no_fnmatch_line("*LmcWarning*")
