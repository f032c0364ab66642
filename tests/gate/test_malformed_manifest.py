"""A malformed manifest stops collection with lines a user can act on."""

from __future__ import annotations

import pytest


def test_the_mistake_is_named_without_a_traceback(project):
    """Exit 2; file, key, got, expected and the nearest valid name on one line."""
    project.manifest(project.pair("good") + project.check("good", limits=0.05), name="gates/lmc.toml")
    result = project.run("--lmc-models")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines(
        [
            "*ERROR collecting gates/lmc.toml*",
            "gates/lmc.toml: pair.good.check.linear_connectivity.limits: unknown key (did you mean 'limit'?), "
            "expected one of *",
        ]
    )
    for trace in ("*Traceback*", "*.py:*", "*pydantic*"):
        result.stdout.no_fnmatch_line(trace)


def test_under_xdist_it_is_said_as_well(project):
    """Workers collect; the line and a failing exit status reach the user all the same."""
    project.path.joinpath("lmc.toml").write_text("schema = 1\n")
    result = project.run_subprocess("--lmc-models", "-n", "2", "--dist=loadscope")
    assert result.ret != pytest.ExitCode.OK
    result.stdout.fnmatch_lines(["*lmc.toml: no pairs, no models, no sets and no merges, expected at least one *"])


def test_asking_for_one_check_of_it_says_why_it_is_not_there(project):
    """Pasting a reproduce line after breaking the manifest shows the mistake, not only 'not found'."""
    project.path.joinpath("lmc.toml").write_text("schema = 1\nnonsense\n")
    result = project.run("lmc.toml::good::linear_connectivity")
    assert result.ret not in (pytest.ExitCode.OK, pytest.ExitCode.INTERNAL_ERROR)
    assert "lmc.toml: not valid TOML" in result.stdout.str() + result.stderr.str()


def test_a_well_formed_manifest_beside_it_is_run_on_request(project):
    """pytest's own --continue-on-collection-errors keeps its meaning."""
    project.gate(good="0.01")
    (project.path / "bad.lmc.toml").write_text("schema = 2\n")
    result = project.run("--lmc-models", "--continue-on-collection-errors")
    result.assert_outcomes(passed=2, errors=1)


def test_the_json_report_holds_the_error(project):
    """A machine that reads only the report learns why nothing was measured."""
    import json

    (project.path / "lmc.toml").write_text("schema = 2\n")
    project.run("--lmc-models", "--lmc-report-json=report.json")
    report = json.loads((project.path / "report.json").read_text())
    assert report["exit_status"] == pytest.ExitCode.INTERRUPTED
    assert report["checks"] == []
    assert report["errors"][0]["id"] == "lmc.toml"
    assert "schema: got 2, expected 1" in report["errors"][0]["message"]


def test_the_short_summary_says_the_reason(project):
    """The last lines of a run, which is all that some CI pages show, name the first mistake."""
    (project.path / "lmc.toml").write_text("schema = 1\n[pair.x]\nb = 'b.safetensors'\n")
    result = project.run("--lmc-models")
    result.stdout.fnmatch_lines(["ERROR lmc.toml - lmc.toml: pair.x*"])
