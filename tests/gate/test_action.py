"""The composite action for GitHub: its gate step, run by bash as a runner would, on a project with the fake core."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ACTION = Path(__file__).parents[2] / ".github/actions/gate/action.yml"


def run_step(project, manifest=".", options=""):
    """Run the step ``gate``; return its exit status and what it gave as outputs."""
    yaml = pytest.importorskip("yaml")
    step = next(s for s in yaml.safe_load(ACTION.read_text(encoding="utf-8"))["runs"]["steps"] if s.get("id") == "gate")
    given = {"MANIFEST": manifest, "OPTIONS": f"-p fakecore {options}", "REPORT": "lmc-report"}
    assert set(step["env"]) == set(given)
    outputs = project.path / "outputs.txt"
    outputs.write_text("")
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    env = os.environ | given | {"GITHUB_OUTPUT": str(outputs), "PYTHONPATH": paths, "GITHUB_ACTIONS": "true"}
    env.pop("PYTEST_ADDOPTS", None)
    env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env["PATH"]])
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
    done = subprocess.run(command, cwd=project.path, env=env, capture_output=True, text=True, timeout=120, check=False)
    return done, dict(line.split("=", 1) for line in outputs.read_text().splitlines())


@pytest.mark.skipif(shutil.which("bash") is None, reason="a runner has bash")
def test_the_step_passes_fails_and_says_so(project):
    """Exit status, result and attestation of a gate that passes, and of one that fails with an annotation."""
    project.gate(good="0.01")
    done, outputs = run_step(project)
    assert done.returncode == 0, done.stdout + done.stderr
    assert outputs["result"] == "PASSED"
    assert json.loads(Path(outputs["attestation"]).read_text())["predicate"]["passedTests"]
    assert (project.path / "lmc-report/junit.xml").is_file()
    project.gate(bad="2")
    project.gate(name="b/other.lmc.toml", also="0.01", not_this="3")
    done, outputs = run_step(project, "lmc.toml\nb\n", "-q -k 'bad or also'")  # lines, and quotes
    assert "also" in done.stdout
    assert "not_this" not in done.stdout
    assert done.returncode == 1
    assert outputs["result"] == "FAILED"
    assert "::error file=lmc.toml,line=" in done.stdout


@pytest.mark.skipif(shutil.which("bash") is None, reason="a runner has bash")
def test_no_manifest_is_no_green(project):
    """Nothing to measure: pytest's usage error, and FAILED, though an older attestation lies there."""
    folder = project.path / "lmc-report"
    folder.mkdir()
    (folder / "attestation.json").write_text('{"predicate": {"result": "PASSED"}}')
    done, outputs = run_step(project, "nowhere")
    assert done.returncode != 0
    assert outputs["result"] == "FAILED"
