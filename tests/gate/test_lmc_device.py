"""``--lmc-device`` and the ini key ``lmc_device``."""

from __future__ import annotations

import json

import pytest


def device_used(project, *arguments):
    """Return the device that the only check of a run was given."""
    project.run("--lmc-models", "--lmc-report-json=report.json", *arguments)
    return json.loads((project.path / "report.json").read_text())["checks"][0]["details"]["device"]


def test_the_device_reaches_the_pair(project):
    """auto by default, else the ini key, else what the command line says."""
    project.gate(good="0.01")
    assert device_used(project) == "auto"
    project.pytester.makeini("[pytest]\nlmc_device = cpu\n")
    assert device_used(project) == "cpu"
    assert device_used(project, "--lmc-device=auto") == "auto"


@pytest.mark.parametrize("flags", [("--lmc-device=gpu",), ("--lmc-device=cuda:x",), ("-o", "lmc_device=tpu")])
def test_no_such_device_is_a_usage_error(project, flags):
    """Known before anything is collected, on one line."""
    project.gate(good="0.01")
    result = project.run("--lmc-models", *flags)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --lmc-device: got '*', expected auto, cpu, cuda or cuda:N"])


FAKE_DEVICE = """
import sys, types
from lmccheck.errors import DeviceError
device = types.ModuleType("lmccheck.network.device")
def resolve_device(name): raise DeviceError(f"{name}: no GPU")
device.resolve_device = resolve_device
sys.modules["lmccheck.network.device"] = device
"""


@pytest.mark.parametrize("flags", [(), ("-n", "1", "--dist=loadscope")])
def test_an_absent_gpu_is_a_usage_error_never_a_skip(project, flags):
    """Explicit cuda without a GPU ends the run with exit 4, with or without xdist."""
    project.gate(good="0.01")
    project.pytester.makeconftest(FAKE_DEVICE)
    result = project.run_subprocess("--lmc-models", "--lmc-device=cuda:1", *flags)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "ERROR: --lmc-device=cuda:1: cuda:1: no GPU" in [*result.errlines, *result.outlines]
    result.stdout.no_fnmatch_line("*skipped*")


def test_collecting_does_not_ask_for_the_gpu(project):
    """The GPU, and with it torch, is needed only where something is to be measured."""
    project.gate(good="0.01")
    project.pytester.makeconftest(FAKE_DEVICE)
    assert project.run("--lmc-models", "--lmc-device=cuda", "--collect-only").ret == pytest.ExitCode.OK
    assert project.run("--lmc-device=cuda", "lmc.toml::manifest").ret == pytest.ExitCode.OK
