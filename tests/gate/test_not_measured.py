"""Every selected check has a row at the end, whatever happened to it, and a run with one unmeasured is never green."""

from __future__ import annotations

import json

import pytest


def gate(project, count=3):
    """A manifest of pairs p0, p1 …, all of which would pass."""
    return project.gate(**{f"p{k}": "0.01" for k in range(count)})


def report_of(project):
    return json.loads((project.path / "report.json").read_text())


def run(project, *arguments):
    """Run with both reports; return the result and the JSON's rows by pair and name."""
    flags = ("--lmc-report-json=report.json", "--lmc-report-md=report.md", *arguments)
    result = project.run("--lmc-models", *flags)
    return result, {check["id"].removeprefix("lmc.toml::"): check for check in report_of(project)["checks"]}


FIXTURES = {
    "skip": ("pytest.skip('no GPU here')", "skipped: no GPU here"),
    "importorskip": ("pytest.importorskip('nothing_of_this_name')", "skipped: could not import 'nothing_of_this_name'"),
    "xfail": ("pytest.xfail('known to be bad')", "xfailed: known to be bad"),
    "fail": ("pytest.fail('Timeout (>1.0s)')", "failed: Timeout (>1.0s)"),
}


@pytest.mark.parametrize("name", FIXTURES)
@pytest.mark.parametrize("report_only", [False, True])
def test_a_fixture_that_gives_up_is_a_row(project, name, report_only):
    """Skip, xfail, fail and exit in a conftest's fixture: a row with the reason and the line, in every report."""
    statement, reason = FIXTURES[name]
    gate(project, 2)
    project.pytester.makeconftest(f"import pytest\n\n@pytest.fixture\ndef lmc_data():\n    {statement}\n")
    result, rows = run(project, *["--lmc-report-only"] * report_only)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert report_of(project)["exit_status"] == 1
    for pair in ("p0", "p1"):
        row = rows[f"{pair}::linear_connectivity"]
        assert row["verdict"] == "not measured"
        assert row["message"].startswith(reason)
        assert "conftest.py:5" in row["message"]
    assert rows["manifest"]["verdict"] == "pass"
    result.stdout.fnmatch_lines(["2 of 2 checks not measured", "p0 *not measured*", "p0::*, p1::*: " + reason + "*"])
    text = (project.path / "report.md").read_text()
    assert "**2 of 2 checks not measured.**" in text
    assert reason in text
    result.assert_outcomes(passed=1, errors=2)


def test_a_fixture_that_ends_the_program_is_a_row(project):
    """sys.exit(0) in a fixture is neither a pass nor the end of the run."""
    gate(project, 1)
    project.pytester.makeconftest("import pytest, sys\n@pytest.fixture\ndef lmc_data(): sys.exit(0)")
    result, rows = run(project)
    assert result.ret == 1
    assert rows["p0::linear_connectivity"]["verdict"] == "not measured"
    assert rows["p0::linear_connectivity"]["message"] == "SystemExit: 0 (conftest.py:3)"


@pytest.mark.parametrize(
    "hook",
    [
        "item.add_marker(pytest.mark.skip(reason='slow'))",
        "item.add_marker(pytest.mark.xfail(reason='slow'))",
        "item.add_marker(pytest.mark.xfail(run=False, reason='slow'))",
    ],
)
def test_markers_turn_no_check_green(project, hook):
    """What fails stays red under xfail; what a marker keeps from running is not measured."""
    project.gate(bad="2")
    project.pytester.makeconftest(
        f"import pytest\ndef pytest_collection_modifyitems(items):\n    item = items[-1]\n    {hook}"
    )
    result, rows = run(project)
    assert result.ret == report_of(project)["exit_status"] == 1
    measured = "mark.xfail(reason" in hook
    assert rows["bad::linear_connectivity"]["verdict"] == ("fail" if measured else "not measured")


def test_a_plugin_that_turns_outcomes_turns_no_check_green(project):
    """The exit status follows the rows, not what another plugin makes of a report."""
    project.gate(bad="2")
    project.pytester.makeconftest(
        "import pytest\n@pytest.hookimpl(wrapper=True, tryfirst=True)\ndef pytest_runtest_makereport(item, call):\n"
        "    report = yield\n    report.outcome = 'passed'\n    return report\n"
    )
    result, _ = run(project)
    assert result.ret == report_of(project)["exit_status"] == 1


@pytest.mark.parametrize(
    ("flags", "stopped"), [(["-x"], "stopping after 1 failures"), (["--maxfail=1"], "stopping after 1 failures")]
)
def test_what_was_not_reached_is_a_row(project, flags, stopped):
    """With -x the first failure ends the run; the others are named, and why."""
    project.gate(a="2", b="0.01", c="0.01")
    result, rows = run(project, *flags)
    assert [rows[f"{p}::linear_connectivity"]["verdict"] for p in "abc"] == ["fail", "not measured", "not measured"]
    assert rows["c::linear_connectivity"]["message"] == f"not reached: {stopped}"
    assert rows["c::linear_connectivity"]["severity"] == "fail"
    result.stdout.fnmatch_lines(["2 of 3 checks not measured"])


def test_stepwise_says_what_is_left(project):
    """As -x does, under its own words."""
    project.gate(a="2", b="0.01")
    _, rows = run(project, "--stepwise")
    assert "continuing from this test next run" in rows["b::linear_connectivity"]["message"]


@pytest.mark.parametrize("returncode", [None, 0])
def test_pytest_exit_is_never_green(project, returncode):
    """Not even where it asks for 0: what it kept from being measured is listed."""
    gate(project)
    code = f"def load_pair(*a, **b): pytest.exit('enough', returncode={returncode})"
    project.pytester.makeconftest(
        f"import pytest, fakecore\n{code}\nfakecore.FakeCore.load_pair = staticmethod(load_pair)"
    )
    result, rows = run(project)
    assert result.ret == report_of(project)["exit_status"] == (1 if returncode == 0 else 2)
    assert "interrupted while it ran: Exit: enough" in rows["p0::linear_connectivity"]["message"]
    assert "not reached: Exit: enough" in rows["p2::linear_connectivity"]["message"]


def test_a_collection_error_beside_good_manifests(project):
    """Nothing runs then; the good manifest's checks are rows, the bad one's mistake is told."""
    gate(project, 2)
    (project.path / "bad.lmc.toml").write_text("schema = 1\n[pair.x]\n")
    result, rows = run(project)
    assert result.ret == report_of(project)["exit_status"] == 2
    assert rows["p1::linear_connectivity"]["message"] == "not reached: 1 error during collection"
    assert rows["manifest"]["verdict"] == "not measured"
    assert "pair.x.a: missing" in report_of(project)["errors"][0]["message"]
    result.stdout.fnmatch_lines(["2 of 2 checks not measured"])


def test_errors_that_are_gone_over_are_not_green_either(project):
    """--continue-on-collection-errors measures the rest; the exit status is pytest's own, 1."""
    gate(project, 1)
    (project.path / "bad.lmc.toml").write_text("schema = 1\n[pair.x]\n")
    result, rows = run(project, "--continue-on-collection-errors")
    assert (result.ret, rows["p0::linear_connectivity"]["verdict"]) == (1, "pass")


def test_what_is_deselected_was_not_asked_for(project):
    """-k, -m, --deselect, --lf and explicit ids: no rows, and a green run."""
    gate(project)
    result, rows = run(project, "-k", "p1")
    assert (result.ret, list(rows)) == (0, ["p1::linear_connectivity"])
    result, rows = run(project, "--deselect=lmc.toml::p0", "-m", "lmc")
    assert "p0::linear_connectivity" not in rows
    project.run("lmc.toml::p2::linear_connectivity", "--lmc-report-json=report.json")
    assert [check["pair"] for check in report_of(project)["checks"]] == ["p2"]


def test_a_rerun_of_failures_selects_only_those(project):
    """--lf deselects after every other plugin; what it leaves out has no row."""
    project.gate(a="2", b="0.01")
    run(project)
    _, rows = run(project, "--lf")
    assert list(rows) == ["a::linear_connectivity"]


def test_collecting_only_writes_nothing(project):
    """No report, though one is asked for."""
    gate(project)
    project.run("--lmc-models", "--collect-only", "--lmc-report-json=report.json")
    assert not (project.path / "report.json").exists()


@pytest.mark.parametrize("flags", [(), ("--lmc-report-only",)])
def test_a_run_that_only_sets_up_measured_nothing(project, flags):
    """--setup-only is no green gate, and none of a run that fails nothing either."""
    gate(project, 1)
    result, rows = run(project, "--setup-only", *flags)
    assert (result.ret, rows["p0::linear_connectivity"]["verdict"]) == (1, "not measured")


def test_without_a_terminal_the_exit_status_and_the_reports_are_the_same(project):
    """-p no:terminal."""
    project.gate(a="2", b="0.01")
    result, rows = run(project, "-x", "-p", "no:terminal")
    assert result.ret == 1
    assert rows["b::linear_connectivity"]["verdict"] == "not measured"


def test_pytest_breaking_down_is_told(project):
    """A hook of someone else's that raises ends the run with 3; the checks are rows."""
    gate(project, 2)
    project.pytester.makeconftest(
        "def pytest_runtest_logreport(report):\n    if report.when == 'call': raise OSError('oh')"
    )
    result, rows = run(project)
    assert result.ret == report_of(project)["exit_status"] == 3
    assert "not reached: OSError: oh" in rows["p1::linear_connectivity"]["message"]


def test_junit_has_what_pytest_reports(project):
    """A skipped check is a failure there, with its verdict as a property."""
    gate(project, 1)
    project.pytester.makeconftest("import pytest\n@pytest.fixture\ndef lmc_data(): pytest.skip('later')")
    run(project, "--junitxml=junit.xml")
    text = (project.path / "junit.xml").read_text()
    assert 'name="lmc.verdict" value="not measured"' in text
    assert "not measured: skipped: later" in text
    assert 'skipped="0"' in text


def test_an_id_that_is_not_there_leaves_no_older_report(project):
    """A check that was renamed: status 4, and a report that says so in place of the green one."""
    gate(project, 1)
    project.run("lmc.toml", "--lmc-report-json=report.json")
    assert report_of(project)["exit_status"] == 0
    result = project.run("lmc.toml::p0::renamed", "--lmc-report-json=report.json")
    assert result.ret == report_of(project)["exit_status"] == pytest.ExitCode.USAGE_ERROR
