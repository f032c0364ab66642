"""``--lmc-profile``: the budget of every search."""

from __future__ import annotations

import json

import pytest


def test_the_profile_is_ci_unless_said_otherwise(project):
    """Default, ini key, command line: the last one wins, and the report states it."""
    project.gate(good="0.01")

    def used(*arguments):
        project.run("--lmc-models", "--lmc-report-json=report.json", *arguments)
        return json.loads((project.path / "report.json").read_text())["checks"][0]["profile"]

    assert used() == "ci"
    project.pytester.makeini("[pytest]\nlmc_profile = dev\n")
    assert used() == "dev"
    assert used("--lmc-profile=thorough") == "thorough"


def test_an_unknown_profile_names_the_nearest(project):
    """A typing mistake is a usage error with the mend."""
    project.gate(good="0.01")
    result = project.run("--lmc-models", "--lmc-profile=through")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        ["ERROR: --lmc-profile: got 'through', expected dev, ci, thorough (did you mean 'thorough'?)"]
    )
