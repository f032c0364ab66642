"""``--lmc-models``: which manifests are collected, and what a run without any does."""

from __future__ import annotations

import pytest


def test_a_passing_gate_exits_0_with_the_table(project):
    """A gate whose pairs pass is green, and its table names pair, check, verdict and measured value."""
    project.gate(good="0.01", name="gates/lmc.toml")
    result = project.run("--lmc-models", "gates")
    assert result.ret == pytest.ExitCode.OK
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(
        ["*= lmccheck =*", "pair *check *verdict *value *limit *unit*", "good*pass*0.01*0.05*nats*"]
    )


def test_a_failing_gate_exits_1(project):
    """One failing pair makes the run red."""
    project.gate(good="0.01", bad="2")
    assert project.run("--lmc-models").ret == pytest.ExitCode.TESTS_FAILED


def test_every_manifest_under_the_given_paths_is_collected(project):
    """lmc.toml and *.lmc.toml are manifests; other TOML files are not."""
    project.gate(one="0.01", name="gates/lmc.toml")
    project.gate(two="0.01", name="gates/prod.lmc.toml")
    project.gate(three="0.01", name="gates/other.toml")
    project.gate(four="0.01", name="elsewhere/lmc.toml")
    result = project.run("--lmc-models", "gates", "--collect-only", "-q")
    result.stdout.fnmatch_lines_random(
        ["gates/lmc.toml::one::linear_connectivity", "gates/prod.lmc.toml::two::linear_connectivity"]
    )
    result.stdout.no_fnmatch_line("*three*")
    result.stdout.no_fnmatch_line("*four*")


def test_testpaths_are_searched_when_no_path_is_given(project):
    """The ini key testpaths names the folder of the manifests, as it does for tests."""
    project.gate(good="0.01", name="gates/lmc.toml")
    project.gate(sidelong="0.01", name="lmc.toml")
    project.pytester.makeini("[pytest]\ntestpaths = gates\n")
    result = project.run("--lmc-models")
    result.assert_outcomes(passed=2)
    result.stdout.no_fnmatch_line("*sidelong*")


def test_without_the_flag_no_manifest_is_collected(project):
    """A plain pytest run of a project with a manifest is left as it is."""
    project.gate(good="0.01")
    project.pytester.makepyfile("def test_plain(): pass")
    result = project.run()
    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line("*lmc.toml*")


@pytest.mark.parametrize("name", ["lmc.toml", "gates/prod.lmc.toml"])
def test_an_explicitly_named_manifest_needs_no_flag(project, name):
    """Naming the file is asking for it."""
    project.gate(good="0.01", name=name)
    project.run(name).assert_outcomes(passed=2)


def test_one_check_is_run_by_its_node_id(project):
    """path::pair::check runs that check alone, without the flag."""
    project.gate(good="0.01", bad="2", name="gates/lmc.toml")
    project.run("gates/lmc.toml::good::linear_connectivity").assert_outcomes(passed=1)
    project.run("gates/lmc.toml::manifest").assert_outcomes(passed=1)
    project.run("gates/lmc.toml::bad").assert_outcomes(failed=1)


def test_ordinary_tests_are_collected_beside_manifests(project):
    """The flag adds manifests and takes nothing away."""
    project.gate(good="0.01")
    project.pytester.makepyfile("def test_plain(): pass")
    project.run("--lmc-models").assert_outcomes(passed=3)


@pytest.mark.parametrize("flags", [(), ("-n", "2", "--dist=loadscope")])
def test_no_manifest_is_a_usage_error(project, flags):
    """A gate that found nothing to test is never green, with or without xdist, and says so in one line."""
    project.pytester.makepyfile("def test_plain(): pass")
    result = project.run_subprocess("--lmc-models", *flags)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    text = [line for line in [*result.errlines, *result.outlines] if "no lmc.toml" in line]
    told = (
        "ERROR: --lmc-models: no lmc.toml and no *.lmc.toml under the given paths; mend: lmccheck init A B writes one"
    )
    assert text == [f"{told} for two checkpoints"]
    result.stdout.no_fnmatch_line("*Traceback*")


def test_deselecting_everything_is_pytests_own_exit_code(project):
    """-k that matches nothing ends as in any pytest run: exit 5."""
    project.gate(good="0.01")
    assert project.run("--lmc-models", "-k", "nothing").ret == pytest.ExitCode.NO_TESTS_COLLECTED


def test_checks_are_selected_by_keyword_and_marker(project):
    """-k knows pair names, check names and properties; -m lmc selects what a manifest asks for."""
    project.manifest(
        project.pair("one") + project.check("one") + project.check("one", "unaligned", property="linear_connectivity"),
        project.pair("two") + project.check("two"),
    )
    project.pytester.makepyfile("def test_plain(): pass")
    project.run("--lmc-models", "-k", "two", "--collect-only").assert_outcomes(deselected=4)
    project.run("--lmc-models", "-k", "unaligned").assert_outcomes(passed=1, deselected=4)
    project.run("--lmc-models", "-k", "linear_connectivity").assert_outcomes(passed=3, deselected=2)
    project.run("--lmc-models", "-m", "lmc", "--strict-markers").assert_outcomes(passed=4, deselected=1)


def test_a_manifest_above_the_given_folder_does_not_count(project):
    """pytest lists parent folders on its way; a manifest seen there is not one that was run."""
    project.gate(one="0.01")
    (project.path / "gates").mkdir()
    (project.path / "gates" / "test_other.py").write_text("def test_other():\n    pass\n")
    result = project.run("--lmc-models", "gates")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --lmc-models: no lmc.toml and no *.lmc.toml under the given paths; mend: *"])
