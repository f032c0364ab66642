"""The fixture ``lmc``: the public functions in an ordinary test."""

from __future__ import annotations

import pytest


def test_paths_are_relative_to_the_test_and_the_device_is_the_runs(project):
    """A test can be run from anywhere, on any device."""
    project.pair("good", "tests")
    (project.path / "tests/test_soup.py").write_text(
        """
def test_soup(lmc, lmc_device):
    assert lmc_device == "cpu"
    pair = lmc.load_pair("good-a.safetensors", "good-b.safetensors", model="models:mlp", data="test.safetensors")
    assert pair.device == "cpu"
    assert pair.description["loss"] == "cross_entropy"
    result = lmc.linear_connectivity(pair, limit=0.05)
    assert result.passed
"""
    )
    project.run("--lmc-device=cpu").assert_outcomes(passed=1)


def test_sources_default_to_the_fixtures(project):
    """A conftest that says what manifests run on says it for tests as well."""
    project.pair("good")
    project.pytester.makeconftest(
        """
import pytest
@pytest.fixture
def lmc_model_factory(): return "made:here"
@pytest.fixture
def lmc_data(): return "data:here"
"""
    )
    project.pytester.makepyfile(
        """
def test_soup(lmc):
    pair = lmc.load_pair("good-a.safetensors", "good-b.safetensors")
    assert (pair.description["model"], pair.description["data"]) == ("made:here", "data:here")
"""
    )
    project.run().assert_outcomes(passed=1)


def test_a_missing_source_says_how_to_give_it(project):
    """One line with both mends."""
    project.pytester.makepyfile("def test_soup(lmc): lmc.load_pair('a', 'b')")
    result = project.run()
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["E *lmc.load_pair: no model; say model=… or override the fixture lmc_model_factory"])


def test_the_fixtures_are_documented(project):
    """pytest --fixtures lists each with its sentence."""
    result = project.run("--fixtures")
    result.stdout.fnmatch_lines_random(["lmc *", "lmc_device *", "lmc_model_factory *", "lmc_data *", "lmc_loss *"])
