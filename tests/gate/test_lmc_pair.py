"""The fixture ``lmc_pair`` and the marker ``lmc``: ordinary tests of the pairs of a manifest."""

from __future__ import annotations

import pytest

TEST = "def test_soup(lmc, lmc_pair): assert lmc.linear_connectivity(lmc_pair, limit=0.05).passed\n"


def test_a_test_runs_for_each_pair_of_the_nearest_manifest(project):
    """With the pair's name as its id, on what the manifest says; also from a folder below."""
    project.gate(good="0.01", bad="2")
    (project.path / "tests").mkdir()
    (project.path / "tests/test_soup.py").write_text(TEST)
    result = project.run("-v")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines_random(["*::test_soup?good? PASSED*", "*::test_soup?bad? FAILED*"])


def test_the_marker_names_pairs_and_another_manifest(project):
    """In its order; -m selects what is marked."""
    project.gate(one="0.01", two="0.01", name="gates/x.lmc.toml")
    project.pytester.makepyfile(
        "import pytest\n"
        "@pytest.mark.lmc('two', manifest='gates/x.lmc.toml')\n"
        "def test_soup(lmc_pair): assert lmc_pair.name == 'two'\n"
        "def test_other(): pass\n"
    )
    result = project.run("-m", "lmc", "--strict-markers")
    result.assert_outcomes(passed=1, deselected=1)


def test_overrides_beside_the_test_hold_for_its_pairs(project):
    """Each folder's own, also where two use one manifest; an override may build on what the manifest says."""
    project.gate(good="0.01")
    for folder in ("here", "there"):
        (project.path / folder).mkdir()
    (project.path / "here/conftest.py").write_text(
        "import pytest\n@pytest.fixture\ndef lmc_model_factory(lmc_model_factory): return lmc_model_factory + '_wide'"
    )
    test = "def test_it(lmc_pair): assert lmc_pair.description['model'] == '{}'"
    (project.path / "here/test_here.py").write_text(test.format("models:mlp_wide"))
    (project.path / "there/test_there.py").write_text(test.format("models:mlp"))
    project.run().assert_outcomes(passed=2)


def test_a_pair_is_loaded_once_for_all_tests_of_a_module(project):
    """Two tests, two pairs, two loads."""
    project.gate(one="0.01", two="0.01")
    project.pytester.makepyfile(
        "import fakecore\nfakecore.LOADED.clear()\n"
        "def test_a(lmc_pair): pass\n"
        "def test_b(lmc_pair): pass\n"
        "def test_c(): assert sorted(fakecore.LOADED) == ['one', 'two']\n"
    )
    project.run("-p", "no:randomly").assert_outcomes(passed=5)


def test_ones_own_fixture_of_that_name_is_left_alone(project):
    """In a conftest, in the module: no manifest is looked for."""
    project.pytester.makeconftest("import pytest\n@pytest.fixture\ndef lmc_pair(): return 1")
    test = "def test_it(lmc_pair): assert lmc_pair == {}"
    project.pytester.makepyfile(
        test_pair_of_the_conftest=test.format(1),
        test_pair_of_the_module=f"import pytest\n@pytest.fixture\ndef lmc_pair(): return 2\n{test.format(2)}",
    )
    project.run().assert_outcomes(passed=2)


def test_ones_own_parametrize_is_left_alone(project):
    """The test says what its argument is."""
    project.pytester.makepyfile(
        "import pytest\n@pytest.mark.parametrize('lmc_pair', [3])\ndef test_it(lmc_pair): assert lmc_pair == 3"
    )
    project.run().assert_outcomes(passed=1)


@pytest.mark.parametrize(
    ("marker", "test", "said"),
    [
        ("", "lmc_pair", "*lmc_pair: no lmc.toml in * or above it up to *; mend: write one, or name it*"),
        ("@pytest.mark.lmc(manifest='no.lmc.toml')", "lmc_pair", "*no.lmc.toml*"),
        (
            "@pytest.mark.lmc('god', manifest='x.lmc.toml')",
            "lmc_pair",
            "*mark.lmc: no pair 'god' (did you mean 'good'?)*",
        ),
        (
            "@pytest.mark.lmc(manfest='x.lmc.toml')",
            "lmc_pair",
            "*mark.lmc: unknown 'manfest' (did you mean 'manifest'?)*",
        ),
        ("@pytest.mark.lmc('good')", "lmc", "*mark.lmc('good',): the test does not ask for lmc_pair; mend:*"),
        ("@pytest.mark.lmc(manifest='set.lmc.toml')", "lmc_pair", "*set.lmc.toml has no pair; mend: add ?pair.NAME?*"),
    ],
)
def test_what_cannot_be_meant_stops_collection_in_one_line(project, marker, test, said):
    """No test of pairs is ever left out quietly."""
    project.gate(good="0.01", name="x.lmc.toml")
    project.manifest(project.set("s") + project.set_check("s"), name="set.lmc.toml")
    project.pytester.makepyfile(f"import pytest\n{marker}\ndef test_soup({test}): pass\n")
    result = project.run()
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines([said])
    result.stdout.no_fnmatch_line("*Traceback*")


def test_a_pair_asked_for_by_name_only_is_refused(project):
    """Nothing says which pair it would be."""
    project.gate(good="0.01")
    project.pytester.makepyfile("def test_soup(request): request.getfixturevalue('lmc_pair')")
    project.run().stdout.fnmatch_lines(
        ["*lmc_pair: asked for by name only, so that no pair was chosen; mend: make it*"]
    )


def test_the_facade_may_be_asked_for_by_name_and_by_wider_fixtures(project):
    """Its folder and its sources are those of the test that runs."""
    project.pair("good")
    project.pytester.makepyfile(
        "import pytest\n"
        "GIVEN = dict(model='models:mlp', data='test.safetensors')\n"
        "@pytest.fixture(scope='module')\n"
        "def soup(lmc): return lmc.load_pair('good-a.safetensors', 'good-b.safetensors', **GIVEN)\n"
        "def test_named(request):\n"
        "    lmc = request.getfixturevalue('lmc')\n"
        "    assert lmc.load_pair('good-a.safetensors', 'good-b.safetensors', **GIVEN)\n"
        "def test_wider(lmc, soup): assert lmc.linear_connectivity(soup).passed\n"
    )
    project.run().assert_outcomes(passed=2)
