"""What a manifest and the command line say reaches the core; what the core gives reaches reports and files."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from lmccheck.gate.items import Recorded
from lmccheck.gate.summary import Summary
from lmccheck.report.record import CheckRecord

WATCH = """
import json, fakecore, pytest
core = fakecore.FakeCore
run, load_pair = core.run, core.load_pair

def watched_run(name, loaded, *, seed, profile, **settings):
    print("RAN", json.dumps({"property": name, "profile": profile, **settings}))
    return run(name, loaded, seed=seed, profile=profile, **settings)

def watched_load(a, b, **given):
    print("LOADED", json.dumps({"a": a, "b": b, **{k: v for k, v in given.items() if k != "base"}}))
    return load_pair(a, b, **given)

core.run, core.load_pair = staticmethod(watched_run), staticmethod(watched_load)
"""


def said(result: pytest.RunResult, word: str) -> list[dict[str, object]]:
    """Return what the conftest above printed."""
    return [json.loads(line.split(f"{word} ", 1)[1]) for line in result.outlines if f"{word} {{" in line]


def test_every_key_of_a_pair_reaches_what_loads_it(project):
    """Files, sources and pins as they are written, also those of [defaults]."""
    pin = "0123456789abcdef" * 4
    pair = project.pair("one") + f'symmetry = "s.toml"\nsha256 = {{ b = "{pin}" }}\n' + project.check("one")
    defaults = 'model = "m:f"\ndata = "data.safetensors"\ncalibration = "m:train"\nloss = "mse"\n'
    project.manifest(pair, defaults=defaults)
    project.pytester.makeconftest(WATCH)
    (loaded,) = said(project.run("--lmc-models", "--lmc-device=cpu", "-s"), "LOADED")
    expected = {
        "a": "one-a.safetensors", "b": "one-b.safetensors", "model": "m:f", "data": "data.safetensors",
        "calibration": "m:train", "loss": "mse", "device": "cpu", "name": "one", "sha256": {"b": pin},
        "symmetry": "s.toml",
    }  # fmt: skip
    assert {key: loaded[key] for key in expected} == expected


def test_the_profile_and_the_settings_reach_the_property(project):
    """Those that the manifest states, and no others."""
    project.manifest(project.pair("one") + project.check("one", points=7, limit=0.5))
    project.pytester.makeconftest(WATCH)
    for flags, profile in (((), "ci"), (("--lmc-profile=dev",), "dev")):
        (ran,) = said(project.run("--lmc-models", "-s", *flags), "RAN")
        assert ran == {"property": "linear_connectivity", "profile": profile, "points": 7, "limit": 0.5}


def test_the_aligned_file_is_that_of_the_first_check_that_aligns(project):
    """In the manifest's order, whatever came last."""
    project.manifest(
        project.pair("one")
        + project.check("one", "none", property="linear_connectivity", align="none")
        + project.check("one", "first", property="linear_connectivity", align="transport")
        + project.check("one", "last", property="linear_connectivity", align="best")
    )
    project.pytester.makeconftest(
        """
import dataclasses, fakecore
core = fakecore.FakeCore
original = core.run

class Named:
    def __init__(self, name):
        self.name = name

    def ship(self, target, files):
        target.write_text(self.name)

def run(name, loaded, *, align="weight-matching", **settings):
    result = original(name, loaded, align=align, **settings)
    return dataclasses.replace(result, witness=None if align == "none" else Named(align))

core.run = staticmethod(run)
"""
    )
    project.run("--lmc-models", "--lmc-aligned-dir=out")
    assert (project.path / "out/one-b-aligned.safetensors").read_text() == "transport"


def test_a_check_that_breaks_after_it_passed_is_an_error(project):
    """Whatever broke it: the row is no pass, and the run is red."""
    project.gate(good="0.01")
    project.pytester.makeconftest(
        """
import pytest

@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call():
    yield
    raise RuntimeError("broke afterwards")
"""
    )
    result = project.run("--lmc-models", "--lmc-report-json=report.json")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    entry = json.loads((project.path / "report.json").read_text())["checks"][0]
    assert (entry["verdict"], entry["blocking"]) == ("error", True)
    assert "broke afterwards" in entry["message"]


@pytest.mark.parametrize(("flags", "blocking"), [((), True), (("--lmc-report-only",), False)])
def test_a_row_says_whether_it_fails_the_run(project, flags, blocking):
    """A failure does, unless nothing is to fail; a pass never does."""
    project.gate(good="0.01", bad="2")
    project.run("--lmc-models", "--lmc-report-json=report.json", *flags)
    checks = json.loads((project.path / "report.json").read_text())["checks"]
    found = {check["pair"]: check["blocking"] for check in checks if check["pair"]}
    assert found == {"good": False, "bad": blocking}


def test_one_report_of_two_that_cannot_be_written_turns_the_run_red(project):
    """The other one is there."""
    project.gate(good="0.01")
    (project.path / "file").write_text("in the way")
    result = project.run("--lmc-models", "--lmc-report-md=r.md", "--lmc-report-json=file/r.json")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert (project.path / "r.md").is_file()


def test_a_path_on_the_command_line_is_relative_to_where_it_was_typed(project, monkeypatch):
    """Not to the folder of the ini file."""
    project.gate(good="0.01", name="gates/lmc.toml")
    project.pytester.makeini("[pytest]\n")
    monkeypatch.chdir(project.path / "gates")
    project.run("--lmc-models", "--lmc-report-json=out/report.json")
    assert (project.path / "gates/out/report.json").is_file()


def test_a_check_lies_where_its_pair_begins(project):
    """The line of the table's header, counted from 0 as pytest does."""
    path = project.gate(one="0.01", two="0.01")
    project.pytester.makeconftest(
        "def pytest_runtest_logreport(report):\n    if report.when == 'call': print('AT', *report.location[:2])\n"
    )
    lines = path.read_text().splitlines()
    places = [line for line in project.run("--lmc-models", "-s").outlines if "AT " in line]
    found = sorted(int(line.split("AT ")[1].split()[1]) for line in places)
    assert found == [0, lines.index("[pair.one]"), lines.index("[pair.two]")]


def record(verdict: str) -> CheckRecord:
    return CheckRecord("id", "lmc.toml", "00", "p", "c", "c", "fail", verdict, verdict != "pass", value=0.5)


def test_what_runs_again_is_said_once():
    """The last record replaces the earlier one, in reports and in JUnit; facts of others stay."""
    summary = Summary()
    for verdict in ("fail", "pass"):
        summary.receive({"record": record(verdict).to_dict()})
    assert [found.verdict for found in summary.records.values()] == ["pass"]
    item = SimpleNamespace(user_properties=[("other", 1)])
    for verdict in ("fail", "pass"):
        Recorded.remember(item, record(verdict))
    assert item.user_properties.count(("other", 1)) == 1
    assert [value for name, value in item.user_properties if name == "lmc.verdict"] == ["pass"]
