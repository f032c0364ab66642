"""``--lmc-report-json``: every measurement, for machines."""

from __future__ import annotations

import datetime
import hashlib
import json

import pytest


def strict(path):
    """Parse a report as strict JSON: a bare NaN or Infinity is an error."""

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def test_the_report_holds_everything(project):
    """Schema, environment, manifest, pairs and checks, whatever the verdicts; its folders are made."""
    manifest = project.gate(good="0.01", bad="2")
    result = project.run("--lmc-models", "--lmc-report-json=out/deep/report.json", "--lmc-seed=3")
    report = strict(project.path / "out/deep/report.json")
    assert report["schema_version"] == 1
    assert report["exit_status"] == result.ret == 1
    assert datetime.datetime.fromisoformat(report["created"]).tzinfo is not None
    assert report["environment"]["seed"] == 3
    assert "--lmc-seed=3" in report["environment"]["arguments"]
    assert {"python", "device"} <= report["environment"].keys()
    assert report["manifests"] == [{"path": "lmc.toml", "sha256": hashlib.sha256(manifest.read_bytes()).hexdigest()}]
    assert [pair["name"] for pair in report["pairs"]] == ["bad", "good"]
    assert len(report["pairs"][0]["files"]["a"]["sha256"]) == 64
    bad, good, own = report["checks"]
    assert (bad["id"], bad["verdict"]) == ("lmc.toml::bad::linear_connectivity", "fail")
    assert (good["id"], good["verdict"]) == ("lmc.toml::good::linear_connectivity", "pass")
    assert (own["id"], own["verdict"]) == ("lmc.toml::manifest", "pass")
    expected = {"value": 2.0, "limit": 0.05, "unit": "nats", "interval": None, "evaluations": 3, "seconds": 0.5}
    assert expected.items() <= bad.items()
    assert bad["witness"] == {"worst_t": 0.5}
    assert bad["details"]["losses"] == [0.1, 2.1, 0.1]
    assert "reproduce: pytest" in bad["message"]
    result.stdout.fnmatch_lines(["JSON report written to *report.json"])


def test_nan_is_a_string(project):
    """JSON has no NaN; a reader gets the word, not a file it cannot parse."""
    project.gate(good="0.01", lost="nan")
    project.run("--lmc-models", "--lmc-report-json=report.json")
    report = strict(project.path / "report.json")
    lost = next(check for check in report["checks"] if check["pair"] == "lost")
    assert lost["value"] == "nan"
    assert lost["verdict"] == "fail"
    assert lost["details"]["naive_losses"][2] == "nan"


def test_an_error_is_an_entry(project):
    """A pair that could not be loaded is in the report with its error and the files it named."""
    project.manifest(project.pair("broken", **{"raise": "CheckpointError"}) + project.check("broken"))
    project.run("--lmc-models", "--lmc-report-json=report.json")
    report = strict(project.path / "report.json")
    assert report["checks"][0]["verdict"] == "error"
    assert "got ashes" in report["checks"][0]["message"]
    assert report["pairs"][0]["files"]["a"] == {"path": "broken-a.safetensors"}


def test_the_ini_key_is_relative_to_the_ini_file(project, monkeypatch):
    """So that CI finds the report wherever pytest was started."""
    project.gate(good="0.01", name="gates/lmc.toml")
    project.pytester.makeini("[pytest]\nlmc_report_json = out/report.json\n")
    monkeypatch.chdir(project.path / "gates")
    project.run("--lmc-models")
    assert (project.path / "out/report.json").is_file()


def test_a_report_that_cannot_be_written_costs_no_measurement(project):
    """The table still shows, one line says why, and a green run turns red."""
    project.gate(good="0.01")
    (project.path / "file").write_text("in the way")
    result = project.run("--lmc-models", "--lmc-report-json=file/report.json")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["good *pass *", "JSON report could not be written to *file/report.json: *"])
    result.stdout.no_fnmatch_line("*Traceback*")


def test_a_manifest_that_only_uses_ini_does_not_touch_plain_runs(project):
    """A plain test run writes no report, though the ini file names one."""
    project.pytester.makeini("[pytest]\nlmc_report_json = report.json\n")
    project.pytester.makepyfile("def test_plain(): pass")
    project.run().assert_outcomes(passed=1)
    assert not (project.path / "report.json").exists()
