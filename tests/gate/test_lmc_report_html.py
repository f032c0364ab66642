"""``--lmc-report-html``: one page, and where its library is missing nothing is measured in vain."""

from __future__ import annotations

import sys

import pytest


@pytest.fixture
def no_jinja2(monkeypatch):
    """As where only lmccheck itself is installed."""
    monkeypatch.setitem(sys.modules, "jinja2", None)


def test_the_page_has_every_check_and_the_command_that_shows_a_failure_again(project):
    """What did not pass comes first, with its text; the ini file may name the page as well."""
    project.gate(good="0.01", bad="2")
    project.pytester.makeini("[pytest]\nlmc_report_html = out/report.html\n")
    result = project.run("--lmc-models")
    text = (project.path / "out/report.html").read_text(encoding="utf-8")
    result.stdout.fnmatch_lines(["HTML report written to *report.html"])
    assert text.startswith("<!DOCTYPE html>")
    assert "1 of 2 checks failed" in text
    assert text.index(">bad ") < text.index(">good ")
    assert "pytest &#39;lmc.toml::bad::linear_connectivity&#39;" in text


def test_without_its_library_the_run_ends_before_anything_is_measured(project, no_jinja2):
    """One line with the command that mends it, and a page of an earlier run is gone."""
    project.gate(good="0.01")
    page = project.path / "report.html"
    page.write_text('<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta name="generator" content="lmccheck 0.2.0">')
    result = project.run("--lmc-models", "--lmc-report-html=report.html")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(['ERROR: --lmc-report-html: needs jinja2, which * mend: pip install "lmccheck?html?"'])
    assert not page.exists()
    assert "1 passed" not in result.stdout.str()


def test_an_ini_file_that_names_a_page_leaves_other_runs_alone(project, no_jinja2):
    """A run without manifests needs no library for a report that it does not write."""
    project.pytester.makeini("[pytest]\nlmc_report_html = report.html\n")
    project.pytester.makepyfile("def test_plain(): pass")
    assert project.run().ret == pytest.ExitCode.OK


def test_a_run_that_is_killed_leaves_no_older_page(project):
    """At the start the page says that the run has not finished."""
    project.gate(good="0.01", crash="0.01")
    project.pytester.makeconftest("import os\n\ndef pytest_runtest_call(item):\n    os.kill(os.getpid(), 9)\n")
    page = project.path / "report.html"
    page.write_text('<meta name="generator" content="lmccheck 0.2.0">')
    project.pytester.runpytest_subprocess("--lmc-models", "-p", "fakecore", "--lmc-report-html=report.html")
    assert "This run has not finished" in page.read_text(encoding="utf-8")
