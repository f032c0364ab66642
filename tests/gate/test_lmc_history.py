"""``--lmc-history``: a row per check and run, whatever the verdicts."""

from __future__ import annotations

import io
import sqlite3
from contextlib import closing

import pytest

from lmccheck.cli.main import main


def stored(project, what="name, verdict, value"):
    with closing(sqlite3.connect(project.path / "h.sqlite")) as base:
        return base.execute(f"SELECT {what} FROM checks ORDER BY rowid").fetchall()


def test_every_check_of_every_run_has_a_row(project, monkeypatch, capsys):
    """Passed, failed and broken; from the ini file; ``lmccheck history`` draws both runs, also in plain ASCII."""
    project.pytester.makeini("[pytest]\nlmc_history = h.sqlite\n")
    broken = project.pair("lost", **{"raise": "CheckpointError"}) + project.check("lost")
    for value in ("0.01", "2"):
        project.manifest(project.pair("a-b", value=value) + project.check("a-b"), broken)
        result = project.run("--lmc-models")
        result.stdout.fnmatch_lines(["history: 2 rows added to *h.sqlite"])
    name = "lmc.toml::{}::linear_connectivity".format
    measured = [(name("a-b"), "pass", 0.01), (name("a-b"), "fail", 2.0)]
    lost = (name("lost"), "error", None)
    assert sorted(stored(project), key=str) == sorted([*measured, lost, lost], key=str)
    monkeypatch.chdir(project.path)
    assert main(["history", "h.sqlite", "a-b"]) == 0
    assert "a-b::linear_connectivity       2  ▁█" in capsys.readouterr().out
    with monkeypatch.context() as patched:
        plain = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
        patched.setattr("sys.stdout", plain)
        assert main(["history", "h.sqlite", "a-b"]) == 0
        plain.seek(0)
        assert "a-b::linear_connectivity       2  _#" in plain.read()
    assert main(["history", "nowhere.sqlite"]) == 2
    assert "nowhere.sqlite: no such file; mend: pytest --lmc-models --lmc-history=" in capsys.readouterr().err


def test_what_is_no_history_is_a_usage_error(project):
    """Before anything is measured; the manifest itself, for example, stays as it is."""
    manifest = project.gate(good="0.01")
    before = manifest.read_bytes()
    result = project.run("--lmc-models", "--lmc-history=lmc.toml")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --lmc-history: history lmc.toml: file is not a database; *mend: give it*"])
    assert manifest.read_bytes() == before


def test_what_cannot_be_kept_is_not_green(project):
    """A folder that became a file since: the measurements are reported, the run is red."""
    project.gate(good="0.01")
    (project.path / "there").write_text("")
    result = project.run("--lmc-models", "--lmc-history=there/h.sqlite")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["not kept: history *there/h.sqlite: *"])
