"""``--lmc-models``: which manifests are collected, and what a run without any does."""

from __future__ import annotations

import pytest


def test_a_passing_gate_exits_0_with_the_table(project):
    """A gate whose pairs pass is green, and its table names pair, check, verdict and measured value."""
    project.gate(good="0.01", name="gates/lmc.toml")
    result = project.run("--lmc-models", "gates")
    assert result.ret == pytest.ExitCode.OK
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["*= lmccheck =*", "pair *check *verdict *value *limit *unit*", "good*pass*0.01*0.05*nats*"])


def test_a_failing_gate_exits_1(project):
    """One failing pair makes the run red."""
    project.gate(good="0.01", bad="2")
    assert project.run("--lmc-models").ret == pytest.ExitCode.TESTS_FAILED
