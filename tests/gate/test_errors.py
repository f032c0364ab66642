"""What goes wrong in one check stays in that check, in as few words as help."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize("error", ["CheckpointError", "SourceError", "DeviceError", "UnsupportedArchitecture"])
def test_a_users_mistake_is_one_line(project, error):
    """An LmcError shows its text and no traceback; the pair is in the table as error, and other pairs are measured."""
    project.manifest(
        project.pair("broken", **{"raise": error}) + project.check("broken"),
        project.pair("good") + project.check("good"),
    )
    result = project.run("--lmc-models")
    result.assert_outcomes(passed=2, failed=1)
    lines = result.outlines
    start = next(k for k, line in enumerate(lines) if "broken: linear_connectivity" in line)
    assert lines[start + 1] == "broken-a.safetensors: broken on purpose, got ashes, expected weights"
    assert "= lmccheck =" in lines[start + 2]
    result.stdout.fnmatch_lines(["broken *error*", "good *pass*"])


def test_an_error_while_measuring_is_one_line_too(project):
    """Not only loading may refuse."""
    project.manifest(project.pair("odd", raise_in_run="1") + project.check("odd"))
    result = project.run("--lmc-models")
    result.stdout.fnmatch_lines(["layer 3: got a wrong permutation, expected*", "odd *error*"])
    result.stdout.no_fnmatch_line("*Traceback*")


def test_a_bug_keeps_its_traceback(project):
    """An exception nobody foresaw is shown in full, counts as error, and stops no other check."""
    project.manifest(
        project.pair("buggy", crash="1") + project.check("buggy"), project.pair("good") + project.check("good")
    )
    result = project.run("--lmc-models")
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["E *RuntimeError: a bug, not the user's mistake", "buggy *error*", "good *pass*"])


def test_a_broken_pair_is_loaded_once(project):
    """Two checks of a broken pair fail alike, and large files are not read twice to fail twice."""
    project.manifest(
        project.pair("broken", **{"raise": "CheckpointError"})
        + project.check("broken")
        + project.check("broken", "again", property="linear_connectivity")
    )
    result = project.run("--lmc-models")
    result.assert_outcomes(passed=1, failed=2)
    assert result.outlines.count("broken-a.safetensors: broken on purpose, got ashes, expected weights") == 2


def test_a_pair_without_model_says_how_to_give_one(project):
    """Neither manifest nor conftest names a model: one line with both mends."""
    project.manifest(project.pair("good") + project.check("good"), defaults='data = "data.safetensors"')
    result = project.run("--lmc-models")
    result.stdout.fnmatch_lines(
        ["pair.good.model: missing in the pair*no conftest.py *lmc_model_factory; mend: model = *"]
    )


def test_a_fixture_that_fails_is_an_error_row(project):
    """An exception in an overriding fixture fails its checks in setup, and they have their rows."""
    project.gate(good="0.01")
    project.pytester.makeconftest("import pytest\n@pytest.fixture\ndef lmc_data(): raise OSError('no disk')")
    result = project.run("--lmc-models")
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["E *OSError: no disk", "good *linear_connectivity *error*"])


def test_inconclusive_fails(project):
    """Only pass passes."""
    project.manifest(project.pair("unsure", verdict="inconclusive") + project.check("unsure"))
    result = project.run("--lmc-models")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["unsure *inconclusive*"])


def test_a_users_mistake_in_a_fixture_is_one_line(project):
    """An LmcError raised in setup is told as shortly as one raised while measuring."""
    project.gate(good="0.01")
    project.pytester.makeconftest(
        "import pytest, lmccheck\n@pytest.fixture\ndef lmc_data(): raise lmccheck.SourceError('no data today')"
    )
    result = project.run("--lmc-models")
    result.assert_outcomes(passed=1, errors=1)
    assert "no data today" in result.outlines
    result.stdout.no_fnmatch_line("*.py:*")
