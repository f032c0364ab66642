"""``--lmc-seed``: one root seed, a stable seed of its own for each check."""

from __future__ import annotations

import json

import pytest


def seeds(project, *arguments):
    """Return the seed of each check, by node id."""
    project.run("--lmc-models", "--lmc-report-json=report.json", *arguments)
    report = json.loads((project.path / "report.json").read_text())
    return {check["id"]: check["seed"] for check in report["checks"] if check["check"] != "manifest"}


@pytest.fixture
def gate(project):
    """Two pairs, one of them with two checks."""
    project.manifest(
        project.pair("one", value="0.01")
        + project.check("one")
        + project.check("one", "again", property="linear_connectivity"),
        project.pair("two", value="0.02") + project.check("two"),
    )
    return project


def test_seeds_differ_between_items_and_repeat_between_runs(gate):
    """Same files, names and root: same seeds, in another process too; another check or pair: another seed."""
    first = seeds(gate)
    assert len(set(first.values())) == 3
    assert seeds(gate) == first
    gate.run_subprocess("--lmc-models", "--lmc-report-json=other.json")
    other = json.loads((gate.path / "other.json").read_text())["checks"]
    assert {check["id"]: check["seed"] for check in other if check["seed"] is not None} == first


def test_the_root_seed_moves_every_seed(gate):
    """From the command line or the ini file."""
    first = seeds(gate)
    moved = seeds(gate, "--lmc-seed=1")
    assert all(moved[item] != first[item] for item in first)
    gate.pytester.makeini("[pytest]\nlmc_seed = 1\n")
    assert seeds(gate) == moved
    assert seeds(gate, "--lmc-seed=0") == first


def test_other_weights_get_another_seed(gate, checkpoint):
    """The pair's hashes enter, not its place in the manifest."""
    first = seeds(gate)
    checkpoint(gate.path / "one-b.safetensors", {"retrained": "yes"})
    changed = {item for item, seed in seeds(gate).items() if seed != first[item]}
    assert changed == {"lmc.toml::one::linear_connectivity", "lmc.toml::one::again"}


def test_a_seed_that_is_no_number_is_a_usage_error(project):
    """On one line."""
    project.gate(good="0.01")
    result = project.run("--lmc-models", "--lmc-seed=lucky")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --lmc-seed: got 'lucky', expected a whole number"])
    stored = project.run("--lmc-models", "-o", "lmc_seed=lucky")
    assert stored.ret == pytest.ExitCode.USAGE_ERROR
    assert stored.errlines == result.errlines


def test_the_published_derivation():
    """sha256 of root, check name and both hashes, joined by NUL; the first four bytes, big-endian."""
    import hashlib

    from lmccheck.gate.collect import item_seed

    description = {"files": {"a": {"sha256": "aa"}, "b": {"sha256": "bb"}}}
    expected = int(hashlib.sha256(b"7\0linear_connectivity\0aa\0bb").hexdigest()[:8], 16)
    assert item_seed(7, "linear_connectivity", description) == expected
