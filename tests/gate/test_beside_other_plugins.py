"""Beside other plugins of pytest the gate is what it is alone; those that are not installed are skipped."""

from __future__ import annotations

import json

import pytest

PLUGINS = {
    "xdist": ("-n", "2", "--dist=loadscope"),
    "pytest_html": ("--html=page.html", "--self-contained-html"),
    "pytest_randomly": ("-p", "randomly", "-p", "no:xdist"),
    "pytest_timeout": ("--timeout=60",),
    "pytest_rerunfailures": ("--reruns=1",),
}


@pytest.mark.parametrize("plugin", PLUGINS)
def test_the_gate_is_what_it_is_alone(project, plugin):
    """Same verdicts, same comparison with the baseline, same exit status; warnings are errors."""
    pytest.importorskip(plugin)
    project.gate(good="0.01", worse="0.01")
    update = ("--lmc-models", "--lmc-baseline=b.json", "--lmc-update-baseline")
    assert project.run(*update).ret == pytest.ExitCode.OK
    project.gate(good="0.01", worse="0.04", bad="2")
    reports = {}
    for flags in ((), PLUGINS[plugin]):
        order = ("-p", "fakecore", "-W", "error")
        run = ("--lmc-models", "--lmc-baseline=b.json", "--lmc-report-json=r.json", "--lmc-history=h.db", *flags)
        result = project.pytester.runpytest_subprocess(*order, *run)
        assert result.ret == pytest.ExitCode.TESTS_FAILED
        checks = json.loads((project.path / "r.json").read_text(encoding="utf-8"))["checks"]
        reports[flags] = {each["id"]: (each["verdict"], each["baseline"].get("verdict")) for each in checks}
    assert reports[()] == reports[PLUGINS[plugin]]
    assert [each for each in reports[()].values() if each[1]] == [
        ("fail", "missing"),
        ("fail", "worse"),
        ("pass", "same"),
    ]
