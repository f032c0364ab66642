"""Tests under ``@given``: fixtures without health checks, the worst as an example to paste, Hypothesis' own options."""

from __future__ import annotations

import pytest
from networks.small import seeded, small_mlp
from safetensors.torch import save_file

MANIFEST = """
schema = 1
[pair.p]
a = "a.safetensors"
b = "b.safetensors"
model = "models:mlp"
data = "data.safetensors"
check.linear_connectivity = { limit = 9.0, align = "none", endpoints = "any" }
[pair.q]
a = "b.safetensors"
b = "a.safetensors"
model = "models:mlp"
data = "data.safetensors"
check.linear_connectivity = { limit = 9.0, align = "none", endpoints = "any" }
"""
IMPORTS = (
    "from hypothesis import example, given, settings, strategies as st\n"
    "from lmccheck.strategies import *\n"
    "from lmccheck.strategies import toward_worst\n"
)


@pytest.fixture
def gate(folder, pytester, real_core):
    """A pair whose layers do not go together, and a test file; runs pytest in this process."""
    for name, seed in (("a", 0), ("b", 1)):
        weights = {key: 4 * value for key, value in seeded(small_mlp, seed).items()}
        save_file(weights, folder / f"{name}.safetensors")
    (folder / "lmc.toml").write_text(MANIFEST)

    def run(text, *arguments, only=""):
        (folder / "test_it.py").write_text(IMPORTS + text)
        return pytester.runpytest_inprocess(f"{folder / 'test_it.py'}{only}", f"--rootdir={folder}", *arguments)

    return run


WORST = """
@settings(max_examples=40, deadline=None)
@given(c=coefficients("lmc_pair"))
def test_layers(lmc, lmc_pair, c):
    assert lmc.linear_connectivity and toward_worst(height(lmc_pair, c)) <= {limit}
"""


def test_session_fixtures_may_be_used_under_given(gate):
    """No health check, no flakiness; a strategy may be bound to a fixture by its name; in methods, too."""
    method = "class TestIt:\n    " + WORST.format(limit=900).strip().replace("(lmc,", "(self, lmc,").replace(
        "\n", "\n    "
    )
    result = gate(f"{WORST.format(limit=900)}\n{method}\n", "-W", "error")
    result.assert_outcomes(passed=4)
    for test in ("test_layers?p?", "test_layers?q?", "TestIt::test_layers?p?", "TestIt::test_layers?q?"):
        result.stdout.fnmatch_lines([f"*::{test}: @example(c={{*}})  # *, the worst of * calls"])


def test_an_example_is_never_cut(gate):
    """Longer than any other line: it is of use only whole."""
    result = gate("""
@settings(max_examples=2, deadline=None)
@given(text=st.text(alphabet="x", min_size=2000, max_size=2000))
def test_long(lmc, text):
    toward_worst(1.0)
""")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*@example(text='" + 2000 * "x" + "')  # 1, *"])


def test_the_worst_is_written_as_an_example_that_can_be_pasted(gate, folder):
    """Of a pass, too; pasted above the test it is what the test runs first, and as bad."""
    result = gate(WORST.format(limit=900), only="::test_layers[p]")
    line = next(line for line in result.outlines if "::test_layers[p]: @example(c={" in line)
    found = line[line.index("@example") :].partition("  #")[0]
    pasted = WORST.format(limit=900).replace("@given", f"{found}\n@given").replace("@settings(", "@settings(phases=[],")
    pasted = pasted.replace("phases=[]", "phases=[__import__('hypothesis').Phase.explicit]")
    again = gate(pasted, only="::test_layers[p]")
    again.assert_outcomes(passed=1)
    other = next(line for line in again.outlines if "::test_layers[p]: @example(c={" in line)
    assert other.partition("  # ")[2].split(",")[0] == line.partition("  # ")[2].split(",")[0]


def test_a_failure_is_shrunk_and_replayed_from_the_example_database(gate, folder):
    """The second run begins with what the first one ended with: one layer, the simplest that violates."""
    kept = "derandomize=False, database=DirectoryBasedExampleDatabase('examples')"  # in CI Hypothesis keeps nothing
    text = "from hypothesis.database import DirectoryBasedExampleDatabase\n" + WORST.format(limit=0.2).replace(
        "@settings(max_examples=40", f"@settings({kept}, max_examples=400"
    ).replace("    assert", "    print('CALLED', c)\n    assert")
    first = gate(text, only="::test_layers[p]")
    first.assert_outcomes(failed=1)
    calls = [line for line in first.outlines if line.startswith("CALLED")]
    second = gate(text, only="::test_layers[p]")
    second.assert_outcomes(failed=1)
    assert next(line for line in second.outlines if line.startswith("CALLED")) == calls[-1]
    second.stdout.fnmatch_lines(["*the worst that Hypothesis found*", "@example(c={*"])


def test_what_st_data_draws_is_said_to_have_no_example(gate):
    """One line says why, and what to do."""
    result = gate("""
@settings(max_examples=5, deadline=None)
@given(data=st.data())
def test_it(lmc_pair, data):
    toward_worst(height(lmc_pair, data.draw(ts(lmc_pair))))
""")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["*drawn by st.data(), of which there is no @example; mend: draw in @given*"])


@pytest.mark.parametrize(
    ("arguments", "seed", "profile"),
    [
        (("--hypothesis-seed=7",), 7, "ci"),
        (("--hypothesis-seed=7", "--lmc-seed=3"), 3, "ci"),
        (("--hypothesis-profile=dev",), 0, "dev"),
        (("--hypothesis-profile=dev", "--lmc-profile=thorough"), 0, "thorough"),
        (("--hypothesis-profile=own",), 0, "ci"),
    ],
)
def test_hypothesis_options_are_ours_unless_ours_are_given(project, arguments, seed, profile):
    """The seed is the root seed; a profile of a name that lmccheck has is its profile."""
    project.gate(good="0.01")
    project.pytester.makeconftest(
        "from hypothesis import settings\nfor name in ('dev', 'own'): settings.register_profile(name)"
    )
    result = project.run("--lmc-models", "--lmc-report-json=r.json", *arguments)
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines([f"lmccheck: device auto, seed {seed}, profile {profile}"])


def test_a_merge_may_be_loaded_and_its_weights_drawn(gate):
    """lmc.load_merge takes what lmccheck.load_merge does, relative to the test; at equal weights it is the mean."""
    result = gate("""
import pytest

@pytest.fixture(scope="module")
def soup(lmc):
    parents = {"x": "a.safetensors", "y": "b.safetensors"}
    given = dict(model="models:mlp", data="data.safetensors", name="soup")
    return lmc.load_merge(parents, {"linear": {"x": 0.5, "y": 0.5}}, **given)

@settings(max_examples=10, deadline=None)
@given(w=merge_weights("soup"))
def test_soup(lmc, soup, w):
    assert abs(sum(w.values()) - 1) < 1e-12 and set(w) <= {"x", "y"}
    toward_worst(height(soup, w))

def test_mean(lmc, soup):
    merged = lmc.merged_loss(soup, limit=1e9).finding.merge.loss
    assert loss(soup, {"x": 0.5, "y": 0.5}) == pytest.approx(merged, abs=1e-6)
""")
    result.assert_outcomes(passed=2)
