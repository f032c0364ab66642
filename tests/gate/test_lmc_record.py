"""The fixture ``lmc_record``: rows of ordinary tests in the table and the reports."""

from __future__ import annotations

import json

TESTS = """
def soup(lmc, name):
    pair = lmc.load_pair(f"{name}-a.safetensors", f"{name}-b.safetensors", model="models:mlp", data="t.safetensors")
    return lmc.linear_connectivity(pair, limit=0.05)

def test_good(lmc, lmc_record):
    lmc_record(soup(lmc, "good"), pair="good")

def test_known_bad(lmc, lmc_record):
    result = soup(lmc, "bad")
    lmc_record(result, name="first")
    lmc_record(result, name="known")
    lmc_record(result, name="known")
    assert not result.passed
"""


def test_a_row_is_in_the_table_and_in_the_report(project):
    """Under the test's id and the row's name, of one name the last; the test's outcome decides."""
    project.pair("good", value="0.01")
    project.pair("bad", value="2")
    project.pytester.makepyfile(test_soup=TESTS)
    result = project.run("--lmc-report-json=r.json")
    result.assert_outcomes(passed=2)
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*= lmccheck =*", "*linear_connectivity*"])
    checks = {check["id"]: check for check in json.loads((project.path / "r.json").read_text())["checks"]}
    assert sorted(checks) == [
        "test_soup.py::test_good::linear_connectivity",
        "test_soup.py::test_known_bad::first",
        "test_soup.py::test_known_bad::known",
    ]
    good, bad = (
        checks[f"test_soup.py::{name}"] for name in ("test_good::linear_connectivity", "test_known_bad::known")
    )
    assert (good["verdict"], good["pair"], good["value"], good["blocking"]) == ("pass", "good", 0.01, False)
    assert (bad["verdict"], bad["value"], bad["severity"], bad["blocking"]) == ("fail", 2.0, "warn", False)


def test_a_row_of_a_test_that_fails_is_blocking(project):
    """And stands under the pair that the test ran for."""
    project.gate(good="2")
    project.pytester.makepyfile(
        test_soup="def test_it(lmc, lmc_pair, lmc_record):\n"
        "    result = lmc.linear_connectivity(lmc_pair, limit=0.05)\n"
        "    lmc_record(result)\n"
        "    assert result.passed\n"
    )
    result = project.run("--lmc-report-json=r.json", "test_soup.py")
    result.assert_outcomes(failed=1)
    (check,) = json.loads((project.path / "r.json").read_text())["checks"]
    assert (check["id"], check["pair"]) == ("test_soup.py::test_it[good]::linear_connectivity", "good")
    assert (check["severity"], check["blocking"]) == ("fail", True)
    assert check["reproduce"] == "pytest 'test_soup.py::test_it[good]'"


def test_only_results_are_recorded(project):
    """Anything else is refused in one line."""
    project.pytester.makepyfile("def test_it(lmc_record): lmc_record(3)")
    project.run().stdout.fnmatch_lines(["E *lmc_record: got int, expected a Result"])


def test_rows_and_pairs_travel_from_workers(project):
    """Under xdist the controller's table has them, too."""
    project.gate(one="0.01", two="0.01")
    project.pytester.makepyfile(
        test_soup="def test_it(lmc, lmc_pair, lmc_record):\n"
        "    lmc_record(lmc.linear_connectivity(lmc_pair, limit=0.05))\n"
    )
    result = project.run_subprocess("-n2", "--lmc-report-json=r.json", "test_soup.py")
    result.assert_outcomes(passed=2)
    checks = json.loads((project.path / "r.json").read_text())["checks"]
    assert sorted(check["pair"] for check in checks) == ["one", "two"]
