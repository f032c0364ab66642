"""Faults in the middle of making a merge: kill -9, SIGTERM, a full disk. Nothing green is left, nothing by halves."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

pytestmark = pytest.mark.slow  # each starts pytest in a process of its own

MODELS = """
import os, pathlib, signal
from torch import nn

def linear():
    return nn.Linear(200, 200)

def mean(parents, base):
    if pathlib.Path("fault").exists():
        os.kill(os.getpid(), int(pathlib.Path("fault").read_text()))
    return {n: (parents["x"][n] + parents["y"][n]) / 2 for n in parents["x"]}
"""
MANIFEST = """\
schema = 1
[defaults]
model = "models:linear"
data = "data.safetensors"
[merge.soup]
parents = { x = "x.safetensors", y = "y.safetensors" }
recipe = { call = "models:mean" }
check.merged_loss = { limit = 5.0, endpoints = "any" }
"""
REPORTS = ("--lmc-report-json=report.json", "--lmc-report-md=report.md", "--lmc-aligned-dir=out")


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    for k, name in enumerate("xy"):
        torch.manual_seed(k)
        save_file(torch.nn.Linear(200, 200).state_dict(), tmp_path / f"{name}.safetensors")
    save_file({"inputs": torch.eye(200)[:8], "targets": torch.arange(8)}, tmp_path / "data.safetensors")
    (tmp_path / "models.py").write_text(MODELS)
    (tmp_path / "lmc.toml").write_text(MANIFEST)
    (tmp_path / "tmp").mkdir()
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    return tmp_path


def run(gate: Path, fault: int = 0, before: Callable[[], None] | None = None) -> int:
    """Run the gate; with a fault the merge sends itself that signal while it is made."""
    (gate / "fault").unlink(missing_ok=True)
    if fault:
        (gate / "fault").write_text(str(int(fault)))
    environment = {**os.environ, "TMPDIR": str(gate / "tmp"), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--lmc-models", *REPORTS]
    return subprocess.run(
        command, cwd=gate, env=environment, preexec_fn=before, stdout=subprocess.DEVNULL, timeout=120, check=False
    ).returncode


def merges_left(gate: Path) -> list[str]:
    return [path.name for path in (gate / "tmp").glob("lmccheck-*")]


def shipped(gate: Path) -> list[str]:
    return sorted(path.name for path in (gate / "out").glob("*")) if (gate / "out").exists() else []


def test_kill_while_a_merge_is_made(gate: Path) -> None:
    """Reports say that the run did not finish; nothing is published; the next run removes what was left."""
    assert run(gate, signal.SIGKILL) == -signal.SIGKILL
    assert json.loads((gate / "report.json").read_text()).get("exit_status") is None
    assert "not finished" in (gate / "report.md").read_text().lower()
    assert shipped(gate) == []
    assert len(merges_left(gate)) == 1
    assert run(gate) == 0
    assert merges_left(gate) == []


def test_terminated_while_a_merge_is_made(gate: Path) -> None:
    """What CI sends first: the check is not measured, the folder is gone at once."""
    assert run(gate, signal.SIGTERM) == 2
    checks = {check["property"]: check["verdict"] for check in json.loads((gate / "report.json").read_text())["checks"]}
    assert checks["merged_loss"] == "not measured"
    assert (merges_left(gate), shipped(gate)) == ([], [])


def test_a_full_disk_while_a_merge_is_made(gate: Path) -> None:
    """One line, an error and not a pass; nothing is left but what was there."""

    def full() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # room for reports, not for 40,200 numbers

    assert run(gate, before=full) == 1
    found = {check["property"]: check for check in json.loads((gate / "report.json").read_text())["checks"]}
    assert found["merged_loss"]["verdict"] == "error"
    assert "cannot be written: File too large; mend: " in found["merged_loss"]["message"]
    assert (merges_left(gate), shipped(gate)) == ([], [])
