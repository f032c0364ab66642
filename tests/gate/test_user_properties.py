"""Facts of every check as flat scalars, where JUnit files and other plugins look for them."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest


@pytest.mark.parametrize("family", ["xunit1", "xunit2"])
def test_junit_carries_the_facts(project, family):
    """Class name from manifest and pair, name from the check, properties from the measurement."""
    project.gate(bad="2", good="0.01", name="gates/lmc.toml")
    project.run("--lmc-models", "--junitxml=junit.xml", "-o", f"junit_family={family}")
    cases = {
        case.get("classname"): case for case in ElementTree.parse(project.path / "junit.xml").getroot().iter("testcase")
    }
    bad = cases["gates.lmc.toml.bad"]
    assert bad.get("name") == "linear_connectivity"
    properties = {node.get("name"): node.get("value") for node in bad.iter("property")}
    expected = {
        "lmc.property": "linear_connectivity",
        "lmc.pair": "bad",
        "lmc.verdict": "fail",
        "lmc.value": "2.0",
        "lmc.limit": "0.05",
        "lmc.unit": "nats",
        "lmc.naive": "1.1",
        "lmc.worst_t": "0.5",
        "lmc.where": "t=0.5",
        "lmc.seconds": "0.5",
    }
    assert expected.items() <= properties.items()
    assert properties["lmc.seed"].isdigit()
    failure = bad.find("failure")
    assert failure is not None
    assert "measured 2 nats, limit 0.05 nats" in (failure.text or "")


def test_an_error_has_its_verdict(project):
    """Also what could not be measured is found by its facts."""
    project.manifest(project.pair("broken", **{"raise": "SourceError"}) + project.check("broken"))
    project.pytester.makeconftest(
        "def pytest_runtest_logreport(report):\n"
        "    print('FACTS', report.when, report.nodeid, dict(report.user_properties))"
    )
    result = project.run("--lmc-models", "-s")
    result.stdout.fnmatch_lines(["*FACTS call lmc.toml::broken::linear_connectivity *'lmc.verdict': 'error'*"])
