"""``--lmc-aligned-dir``: the merge uses what was tested."""

from __future__ import annotations

import pytest


def written(project):
    return sorted(path.name for path in (project.path / "out").glob("*"))


def test_each_passing_pair_is_written(project):
    """One file per pair whose checks all passed; the terminal names it; a failing pair leaves none."""
    project.gate(good="0.01", bad="2")
    result = project.run("--lmc-models", "--lmc-aligned-dir=out")
    assert written(project) == ["good-b-aligned.safetensors"]
    result.stdout.fnmatch_lines(["aligned b written to */out/good-b-aligned.safetensors"])


@pytest.mark.parametrize(("limit", "files"), [(0.05, ["one-b-aligned.safetensors"]), (0.001, [])])
def test_every_selected_check_must_pass(project, limit, files):
    """One failing check, even one that only warns, keeps the pair from being written."""
    project.manifest(
        project.pair("one", value="0.01")
        + project.check("one", limit=0.05)
        + project.check("one", "strict", property="linear_connectivity", limit=limit, severity="warn")
    )
    project.run("--lmc-models", "--lmc-aligned-dir=out", "-W", "default")
    assert written(project) == files


def test_only_selected_checks_count(project):
    """What -k left out was not asked for."""
    project.manifest(
        project.pair("one", value="0.01")
        + project.check("one", limit=0.05)
        + project.check("one", "strict", property="linear_connectivity", limit=0.001)
    )
    project.run("--lmc-models", "--lmc-aligned-dir=out", "--deselect", "lmc.toml::one::strict")
    assert written(project) == ["one-b-aligned.safetensors"]


def test_checks_of_several_pairs_in_turn(project):
    """A plugin that shuffles items leaves a pair and comes back: it is concluded once, after its last check."""
    checks = ("linear_connectivity", "again")
    parts = [
        project.pair(pair, value="0.01") + "".join(project.check(pair, each, property=checks[0]) for each in checks)
        for pair in ("one", "two")
    ]
    project.manifest(*parts)
    ids = [f"lmc.toml::{pair}::{check}" for check in checks for pair in ("one", "two")]
    result = project.run("--lmc-aligned-dir=out", *ids)
    result.assert_outcomes(passed=4)
    result.stdout.no_fnmatch_line("*not written*")
    assert written(project) == ["one-b-aligned.safetensors", "two-b-aligned.safetensors"]


def test_a_stopped_run_writes_no_half_tested_pair(project):
    """With -x, a pair whose later checks never ran has not passed."""
    project.manifest(
        project.pair("one", value="0.01")
        + project.check("one", limit=0.05)
        + project.check("one", "strict", property="linear_connectivity", limit=0.001)
        + project.check("one", "third", property="linear_connectivity", limit=0.05)
    )
    project.run("--lmc-models", "--lmc-aligned-dir=out", "-x")
    assert written(project) == []


def test_checks_that_do_not_align_leave_nothing_to_write(project):
    """align = "none" has no alignment, hence no file."""
    project.manifest(project.pair("one") + project.check("one", align="none"))
    assert project.run("--lmc-models", "--lmc-aligned-dir=out").ret == pytest.ExitCode.OK
    assert written(project) == []


def test_a_folder_that_cannot_be_written_is_an_error(project):
    """One line, a red run, and the measurements still reach the terminal."""
    project.gate(good="0.01")
    (project.path / "out").write_text("a file in the way")
    result = project.run("--lmc-models", "--lmc-aligned-dir=out")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["--lmc-aligned-dir: cannot write *out/good-b-aligned.safetensors: *", "good *pass *"])
    result.stdout.no_fnmatch_line("*Traceback*")


def test_two_pairs_of_one_name_are_refused(project):
    """Their files would overwrite each other."""
    project.gate(same="0.01", name="a/lmc.toml")
    project.gate(same="0.01", name="b/lmc.toml")
    result = project.run("--lmc-models", "--lmc-aligned-dir=out")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --lmc-aligned-dir: a/lmc.toml and b/lmc.toml both have a pair 'same'*"])
    assert project.run("--lmc-models").ret == pytest.ExitCode.OK


@pytest.mark.slow
def test_under_xdist_a_pair_must_stay_on_one_worker(project):
    """--dist=loadscope works; a distribution that may split a pair's checks is a usage error."""
    project.gate(one="0.01", two="0.01", bad="2")
    refused = project.run_subprocess("--lmc-models", "--lmc-aligned-dir=out", "-n", "2", "--dist=load")
    assert refused.ret == pytest.ExitCode.USAGE_ERROR
    refused.stderr.fnmatch_lines(["ERROR: --lmc-aligned-dir: got --dist=load, expected --dist=loadscope*"])
    result = project.run_subprocess("--lmc-models", "--lmc-aligned-dir=out", "-n", "2", "--dist=loadscope")
    assert written(project) == ["one-b-aligned.safetensors", "two-b-aligned.safetensors"]
    result.stdout.fnmatch_lines(["aligned b written to *"])


def test_a_pair_that_is_not_written_says_why(project):
    """Nobody looks for a file that is not there without being told."""
    project.gate(good="0.01", bad="2")
    project.manifest(project.pair("plain") + project.check("plain", align="none"), name="plain.lmc.toml")
    result = project.run("--lmc-models", "--lmc-aligned-dir=out")
    result.stdout.fnmatch_lines(["aligned b not written for bad: linear_connectivity did not pass"])
    result.stdout.fnmatch_lines(["aligned b not written for plain: none of its checks aligns"])


@pytest.mark.parametrize("flags", [[], ["-n", "1", "--dist=loadscope"]])
def test_what_an_earlier_run_aligned_is_not_shipped_now(project, checkpoint, flags):
    """Where a pair fails now, its file and the permutation go, and a line says so; what is not lmccheck's stays."""
    project.gate(bad="2", good="0.01", other="2")
    said = {"lmccheck": '{"method": "weight-matching"}'}
    (project.path / "out" / "bad").mkdir(parents=True)
    for name in ("bad-b-aligned", "good-b-aligned", "bad/x-aligned"):
        checkpoint(project.path / "out" / f"{name}.safetensors")
        checkpoint(project.path / "out" / f"{name}.permutation.safetensors", said)
    checkpoint(project.path / "out" / "bad-b-fused.safetensors", said)
    checkpoint(project.path / "out" / "other-b-aligned.safetensors", {"lmccheck": '{"t": 0.5}'})
    result = project.run_subprocess("--lmc-models", "--lmc-aligned-dir=out", *flags)
    assert written(project) == ["bad", "good-b-aligned.safetensors", "other-b-aligned.safetensors"]
    assert (project.path / "out" / "good-b-aligned.safetensors").read_bytes() == b"aligned"
    assert not list((project.path / "out" / "bad").iterdir())
    for name in ("bad-b-aligned", "bad-b-fused", "bad/x-aligned"):
        result.stdout.fnmatch_lines([f"*/out/{name}.safetensors, of an earlier run, was removed: it did not pass now"])
    assert "good-b-aligned.safetensors, of an earlier run" not in result.stdout.str()


def test_collecting_removes_nothing(project, checkpoint):
    """Nor does a run of other pairs."""
    project.gate(bad="2", good="0.01")
    (project.path / "out").mkdir()
    checkpoint(project.path / "out" / "bad-b-fused.safetensors", {"lmccheck": '{"method": "soft transport"}'})
    for flags in (["--collect-only"], ["-k", "good"]):
        project.run("--lmc-models", "--lmc-aligned-dir=out", *flags)
        assert "bad-b-fused.safetensors" in written(project)
