"""``--lmc-table`` and the terminal section."""

from __future__ import annotations

import pytest


def test_any_tabulate_format_draws_the_table(project):
    """From the command line or the ini file."""
    project.gate(good="0.01")
    project.run("--lmc-models", "--lmc-table=github").stdout.fnmatch_lines(
        ["| pair *| check *", "|---*", "| good *|*pass *|*"]
    )
    project.pytester.makeini("[pytest]\nlmc_table = grid\n")
    project.run("--lmc-models").stdout.fnmatch_lines(["+---*+", "| pair *| check *", "+===*+"])


def test_an_unknown_format_names_the_nearest(project):
    """A typing mistake is a usage error with the mend."""
    project.gate(good="0.01")
    result = project.run("--lmc-models", "--lmc-table=gird")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --lmc-table: got 'gird', expected *(did you mean 'grid'?)"])


def test_failing_rows_come_first(project):
    """A reader of a long table sees what is wrong at its top."""
    project.gate(a="0.01", b="2", c="0.01", d="0.5")
    result = project.run("--lmc-models")
    rows = [line.split()[0] for line in result.outlines if " linear_connectivity  " in line]
    assert rows == ["b", "d", "a", "c"]


def test_a_narrow_terminal_keeps_the_table_within_80_columns(project, monkeypatch):
    """Pair and check then share a column; names and numbers stay whole."""
    monkeypatch.setenv("COLUMNS", "80")
    project.gate(**{"mlp-seed0-seed1": "0.01234", "cnn-seed0-seed1": "2"})
    result = project.run("--lmc-models")
    lines = result.outlines
    start = next(k for k, line in enumerate(lines) if "= lmccheck =" in line)
    table = lines[start + 1 : lines.index("", start)]
    assert max(map(len, table)) <= 80
    result.stdout.fnmatch_lines(
        ["cnn-seed0-seed1 * fail * 2 *", "  linear_connectivity*", "mlp-seed0-seed1 * pass * 0.01234 *"]
    )


def test_the_section_says_what_a_pass_proves_and_what_a_check_remarks(project):
    """Notes come under the table, each once however many checks carry it."""
    project.manifest(
        *(project.pair(name, note="statistics re-estimated") + project.check(name) for name in ("one", "two", "three"))
    )
    result = project.run("--lmc-models")
    result.stdout.fnmatch_lines(
        [
            "pass: the limit holds on the given evaluation data*",
            "one::linear_connectivity, three::linear_connectivity and 1 more: statistics re-estimated",
        ]
    )


def test_the_section_precedes_the_short_summary(project):
    """Failures first, then the table, then pytest's last lines."""
    project.gate(bad="2")
    text = project.run("--lmc-models").stdout.str()
    assert text.index("= FAILURES =") < text.index("= lmccheck =") < text.index("short test summary")


def test_a_run_without_manifests_has_no_section(project):
    """The plugin leaves ordinary runs alone."""
    project.pytester.makepyfile("def test_plain(): pass")
    project.run().stdout.no_fnmatch_line("*lmccheck ==*")
