"""A conftest beside the manifest may say what its checks run on."""

from __future__ import annotations

import json

import pytest


def used(project, *arguments):
    """Return the model, data, loss and device that each pair's check was given."""
    project.run("--lmc-models", "--lmc-report-json=report.json", *arguments)
    checks = json.loads((project.path / "report.json").read_text())["checks"]
    keys = ("model", "data", "loss", "device")
    return {check["pair"]: [check["details"][key] for key in keys] for check in checks if check["pair"]}


def test_the_manifest_is_used_by_default(project):
    """The pair's own values, else those of [defaults], else cross entropy."""
    project.manifest(
        project.pair("plain") + project.check("plain"),
        project.pair("own") + 'model = "models:own"\ndata = "m:data"\nloss = "mse"\n' + project.check("own"),
    )
    assert used(project) == {
        "plain": ["models:mlp", "data.safetensors", "cross_entropy", "auto"],
        "own": ["models:own", "m:data", "mse", "auto"],
    }


def test_each_fixture_can_be_overridden_beside_the_manifest(project):
    """The override holds in its folder and nowhere else."""
    project.gate(here="0.01", name="here/lmc.toml")
    project.gate(there="0.01", name="there/lmc.toml")
    (project.path / "here/conftest.py").write_text(
        """
import pytest
@pytest.fixture
def lmc_model_factory(): return "made:here"
@pytest.fixture
def lmc_data(): return "data:here"
@pytest.fixture
def lmc_loss(): return "loss:here"
@pytest.fixture
def lmc_device(): return "cpu"
"""
    )
    assert used(project) == {
        "here": ["made:here", "data:here", "loss:here", "cpu"],
        "there": ["models:mlp", "data.safetensors", "cross_entropy", "auto"],
    }


def test_an_override_can_build_on_the_manifests_value(project):
    """A fixture that asks for itself gets what the manifest says."""
    project.gate(good="0.01")
    project.pytester.makeconftest(
        "import pytest\n@pytest.fixture\ndef lmc_model_factory(lmc_model_factory): return lmc_model_factory + '_wide'"
    )
    assert used(project)["good"][0] == "models:mlp_wide"


@pytest.mark.parametrize(("returned", "loads"), [("'models:mlp'", 1), ("object()", 2)])
def test_a_pair_is_loaded_once_unless_a_fixture_changes_under_it(project, returned, loads):
    """Checks of one pair share its weights; a new object from a fixture is a new pair."""
    project.manifest(
        project.pair("good") + project.check("good") + project.check("good", "again", property="linear_connectivity")
    )
    project.pytester.makeconftest(f"import pytest\n@pytest.fixture\ndef lmc_model_factory(): return {returned}")
    project.pytester.makepyfile(
        fakecount="import fakecore\ndef pytest_unconfigure(): print('LOADS', len(fakecore.LOADED))"
    )
    result = project.run_subprocess("-p", "fakecount", "--lmc-models")
    result.stdout.fnmatch_lines([f"LOADS {loads}"])


def test_the_weights_are_freed_after_the_pairs_last_check(project):
    """A manifest of many pairs never holds more than one of them."""
    project.gate(one="2", two="0.01", three="0.01")
    project.pytester.makeconftest(
        """
import gc, weakref
import fakecore
core = fakecore.FakeCore
held = []
original = core.load_pair
def load_pair(*args, **options):
    gc.collect()
    alive = [reference for reference in held if reference() is not None]
    assert not alive, "an earlier pair is still held"
    pair = original(*args, **options)
    class Pair: pass
    kept = Pair()
    kept.__dict__.update(pair.__dict__)
    held.append(weakref.ref(kept))
    return kept
core.load_pair = staticmethod(load_pair)
"""
    )
    project.run("--lmc-models").assert_outcomes(passed=3, failed=1)
