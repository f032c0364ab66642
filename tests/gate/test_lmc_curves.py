"""``--lmc-curves``: what each check measured along its line or path, as CSV."""

from __future__ import annotations

import csv

import pytest

from lmccheck.gate.witnesses import curve_lines
from lmccheck.report.record import CheckRecord

HEAD = "t,segment,loss,error,lower,upper"


def written(project):
    return sorted(path.name for path in (project.path / "out").iterdir())


@pytest.mark.parametrize("flags", [[], ["-n", "2"]])
def test_each_line_is_written_as_it_was_measured(project, flags):
    """Passed or not, under whatever distribution. The ini file may name the folder."""
    project.manifest(
        project.pair("good", value="0.01")
        + project.check("good")
        + project.check("good", "again", property="linear_connectivity"),
        project.pair("bad", value="2") + project.check("bad"),
    )
    project.pytester.makeini("[pytest]\nlmc_curves = out\n")
    run = project.run_subprocess if flags else project.run
    result = run("--lmc-models", *flags)
    assert written(project) == ["bad-linear_connectivity.csv", "good-again.csv", "good-linear_connectivity.csv"]
    text = (project.path / "out" / "bad-linear_connectivity.csv").read_text()
    assert text == f"{HEAD}\n0.0,1,0.1,,,\n0.5,1,2.1,,,\n1.0,1,0.1,,,\n"
    result.stdout.fnmatch_lines_random([f"curve written to *out/{name}" for name in written(project)])


def test_a_check_without_a_line_says_so(tmp_path):
    """Nothing is skipped in silence, and nothing is written."""
    record = CheckRecord("id", "lmc.toml", "", "p", "noise", "noise_stability", "fail", "pass", blocking=True)
    assert curve_lines(record, tmp_path) == ["curve of p::noise not written: it measures no line and no path"]
    assert not list(tmp_path.iterdir())


def test_a_curve_of_an_earlier_run_is_not_taken_for_one_of_this(project):
    """Where a check measures nothing now, its file goes and a line says so; those of others stay."""
    project.manifest(
        project.pair("p", **{"raise_in_run": "1"}) + project.check("p"), project.pair("q") + project.check("q")
    )
    (project.path / "out").mkdir()
    for name in ("p-linear_connectivity", "q-linear_connectivity", "other-linear_connectivity"):
        (project.path / "out" / f"{name}.csv").write_text(f"{HEAD}\n0.0,1,9.0,,,\n")
    project.run("--lmc-models", "--collect-only", "--lmc-curves=out")
    assert len(written(project)) == 3
    result = project.run("--lmc-models", "--lmc-curves=out")
    assert written(project) == ["other-linear_connectivity.csv", "q-linear_connectivity.csv"]
    assert "9.0" not in (project.path / "out" / "q-linear_connectivity.csv").read_text()
    result.stdout.fnmatch_lines(
        ["*/out/p-linear_connectivity.csv, of an earlier run, was removed: no curve was measured now"]
    )
    assert "q-linear_connectivity.csv, of an earlier run" not in result.stdout.str()


def test_what_is_no_curve_is_never_replaced(project):
    """An input under a link, or somebody's table: a usage error, before anything is removed or written."""
    project.gate(good="0.01")
    target = project.path / "out" / "good-linear_connectivity.csv"
    target.parent.mkdir()
    target.write_text("t,loss\n")
    result = project.run("--lmc-models", "--lmc-curves=out")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        ["ERROR: --lmc-curves (good::linear_connectivity): *.csv is there already, and no curve *"]
    )
    assert target.read_text() == "t,loss\n"
    target.unlink()
    target.symlink_to(project.path / "good-b.safetensors")
    before = (project.path / "good-b.safetensors").read_bytes()
    result = project.run("--lmc-models", "--lmc-curves=out")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --lmc-curves (*): * is an input, good-b.safetensors, which *"])
    assert (project.path / "good-b.safetensors").read_bytes() == before


def test_names_that_run_together_are_refused(project):
    """Two pairs of one name in two manifests would write one file."""
    project.gate(same="0.01", name="a/lmc.toml")
    project.gate(same="0.01", name="b/lmc.toml")
    result = project.run("--lmc-models", "--lmc-curves=out")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --lmc-curves: a/lmc.toml and b/lmc.toml both have a pair 'same'*"])


def test_a_folder_that_cannot_be_made_is_an_error_of_the_check(project):
    """One line that names option and file; what was measured is still reported."""
    project.gate(good="0.01")
    (project.path / "out").write_text("a file in the way")
    result = project.run("--lmc-models", "--lmc-curves=out")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*--lmc-curves: *good-linear_connectivity.csv: cannot be written: *; mend: *"])


def test_floats_are_written_in_full(project):
    """What is read again is what was measured, to the last bit."""
    project.gate(good="0.012345678901234567")
    project.run("--lmc-models", "--lmc-curves=out")
    with open(project.path / "out" / "good-linear_connectivity.csv") as file:
        rows = list(csv.DictReader(file))
    assert float(rows[1]["loss"]) == 0.1 + 0.012345678901234567
