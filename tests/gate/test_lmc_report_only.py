"""``--lmc-report-only``: measure all, fail nothing, and say so."""

from __future__ import annotations

import json

import pytest


def test_everything_is_measured_and_nothing_fails(project):
    """Exit 0 over failing and broken pairs; header and section say REPORT ONLY; verdicts stay what they are."""
    project.manifest(
        project.pair("bad", value="2") + project.check("bad", limit=0.05),
        project.pair("broken", **{"raise": "CheckpointError"}) + project.check("broken"),
        project.pair("good") + project.check("good"),
    )
    result = project.run("--lmc-models", "--lmc-report-only", "--lmc-report-json=report.json")
    assert result.ret == pytest.ExitCode.OK
    result.assert_outcomes(passed=4)
    result.stdout.fnmatch_lines(
        [
            "lmccheck: REPORT ONLY*",
            "*= lmccheck =*",
            "REPORT ONLY: nothing here fails the run",
            "bad *fail *",
            "broken *error*",
            "good *pass *",
            "measured 2 nats, limit 0.05 nats",
            "broken-a.safetensors: broken on purpose*",
        ]
    )
    report = json.loads((project.path / "report.json").read_text())
    assert [check["verdict"] for check in report["checks"]] == ["fail", "error", "pass", "pass"]
    assert report["environment"]["report_only"] is True


def test_the_manifests_own_problems_are_reported(project):
    """A missing file fails nothing either, and has its row."""
    project.gate(good="0.01")
    (project.path / "data.safetensors").unlink()
    result = project.run("--lmc-models", "--lmc-report-only")
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(["lmc.toml *manifest *error*", "pair.good.data: no file *"])


def test_a_crash_still_fails(project):
    """A bug is no measurement."""
    project.manifest(project.pair("buggy", crash="1") + project.check("buggy"))
    assert project.run("--lmc-models", "--lmc-report-only").ret == pytest.ExitCode.TESTS_FAILED
