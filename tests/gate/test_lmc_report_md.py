"""``--lmc-report-md`` and ``$GITHUB_STEP_SUMMARY``."""

from __future__ import annotations

import pytest


def test_the_report_has_the_same_rows_and_the_failure_texts(project):
    """A heading, a pipe table with what failed first, and each failure's text in full."""
    project.gate(good="0.01", bad="2")
    project.run("--lmc-models", "--lmc-report-md=out/report.md")
    text = (project.path / "out/report.md").read_text(encoding="utf-8")
    lines = text.splitlines()
    rows = [line for line in lines if line.startswith("| ")]
    assert [row.split("|")[1].strip() for row in rows] == ["pair", "bad", "pair", "good"]
    assert len({row.count("|") for row in rows}) == 1
    assert "### `lmc.toml::bad::linear_connectivity`" in lines
    assert "reproduce: pytest 'lmc.toml::bad::linear_connectivity'" in lines


def test_the_ci_summary_is_appended_to(project, monkeypatch):
    """What other steps of the job wrote there stays."""
    summary = project.path / "summary.md"
    summary.write_text("earlier step\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    project.gate(good="0.01")
    assert project.run("--lmc-models").ret == pytest.ExitCode.OK
    text = summary.read_text(encoding="utf-8")
    assert text.startswith("earlier step\n## lmccheck\n")
    assert "| good " in text


def test_a_plain_run_adds_nothing_to_the_summary(project, monkeypatch):
    """Only measurements are worth a summary."""
    summary = project.path / "summary.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    project.pytester.makepyfile("def test_plain(): pass")
    project.run()
    assert not summary.exists()


def test_a_report_that_cannot_be_written_turns_the_run_red(project):
    """One line says so; the measurements still reach the terminal."""
    project.gate(good="0.01")
    result = project.run("--lmc-models", "--lmc-report-md=.")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["good *pass *", "Markdown report could not be written to *"])


def test_the_page_of_the_job_may_be_asked_for_by_name(project, monkeypatch):
    """``--lmc-report-md=$GITHUB_STEP_SUMMARY``: one report, not two."""
    page = project.path / "summary.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(page))
    project.gate(good="0.01")
    assert project.run("--lmc-models", f"--lmc-report-md={page}").ret == pytest.ExitCode.OK
    assert page.read_text(encoding="utf-8").count("## lmccheck") == 1
