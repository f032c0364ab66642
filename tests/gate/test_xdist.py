"""Under xdist the facts travel on the reports, and the controller writes what one process would have written."""

from __future__ import annotations

import json

import pytest


def test_workers_measure_and_the_controller_reports(project):
    """Same table, same JSON checks, same exit status as without xdist."""
    project.manifest(
        project.pair("good", value="0.01") + project.check("good"),
        project.pair("bad", value="2") + project.check("bad"),
        project.pair("lost", value="nan") + project.check("lost"),
        project.pair("broken", **{"raise": "CheckpointError"}) + project.check("broken"),
    )
    reports = []
    for flags in [(), ("-n", "2", "--dist=loadscope")]:
        result = project.run_subprocess("--lmc-models", "--lmc-report-json=report.json", "--lmc-report-md=r.md", *flags)
        assert result.ret == pytest.ExitCode.TESTS_FAILED
        result.assert_outcomes(passed=2, failed=3)
        result.stdout.fnmatch_lines(["*= lmccheck =*", "bad *fail *", "broken *error*", "lost *fail *", "good *pass *"])
        report = json.loads((project.path / "report.json").read_text())
        reports.append([report["checks"], report["manifests"], (project.path / "r.md").read_text()])
    assert reports[0] == reports[1]
