"""The gate on the real core: tiny networks whose verdicts are known beforehand."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.usefixtures("real_core")

MODELS = """
from torch import nn

def mlp():
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3))

def broken():
    raise RuntimeError("no such layer")
"""

MANIFEST = """
schema = 1
[defaults]
model = "models:mlp"
data = "data.safetensors"

[pair.planted]
a = "a.safetensors"
b = "permuted.safetensors"
[pair.planted.check.linear_connectivity]
limit = 1e-6

[pair.unaligned]
a = "a.safetensors"
b = "permuted.safetensors"
[pair.unaligned.check.linear_connectivity]
align = "none"
limit = 0.05

[pair.torn]
a = "a.safetensors"
b = "torn.safetensors"
[pair.torn.check.linear_connectivity]
limit = 0.05

[pair.unbuilt]
model = "models:broken"
a = "a.safetensors"
b = "permuted.safetensors"
[pair.unbuilt.check.linear_connectivity]
limit = 0.05
"""


@pytest.fixture
def real(pytester):
    """A folder with a network, the same network with its hidden units shuffled, and a torn file."""
    generator = torch.Generator().manual_seed(0)
    a = {
        "0.weight": 3 * torch.randn(12, 6, generator=generator),
        "0.bias": torch.randn(12, generator=generator),
        "2.weight": 3 * torch.randn(3, 12, generator=generator),
        "2.bias": torch.randn(3, generator=generator),
    }
    order = torch.randperm(12, generator=generator)
    shuffled = {"0.weight": a["0.weight"][order], "0.bias": a["0.bias"][order], "2.weight": a["2.weight"][:, order]}
    inputs = torch.randn(40, 6, generator=generator)
    hidden = torch.relu(inputs @ a["0.weight"].T + a["0.bias"])
    targets = (hidden @ a["2.weight"].T + a["2.bias"]).argmax(1)
    save_file(a, pytester.path / "a.safetensors")
    save_file(
        {**a, **{key: value.contiguous() for key, value in shuffled.items()}}, pytester.path / "permuted.safetensors"
    )
    save_file({"inputs": inputs, "targets": targets}, pytester.path / "data.safetensors")
    (pytester.path / "torn.safetensors").write_bytes((pytester.path / "permuted.safetensors").read_bytes()[:-9])
    (pytester.path / "models.py").write_text(MODELS)
    (pytester.path / "lmc.toml").write_text(MANIFEST)
    return pytester


def test_the_gate_measures_real_networks(real):
    """A planted permutation passes and its aligned file equals a; unaligned it fails; a broken pair is one line."""
    result = real.runpytest_inprocess(
        "--lmc-models", "--lmc-report-json=report.json", "--lmc-aligned-dir=out", "-W", "error"
    )
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(passed=1, failed=4)  # the manifest's own item fails on the torn file
    report = json.loads((real.path / "report.json").read_text())
    verdicts = {check["id"].removeprefix("lmc.toml::"): check["verdict"] for check in report["checks"]}
    assert verdicts == {
        "manifest": "error",
        "planted::linear_connectivity": "pass",
        "torn::linear_connectivity": "error",
        "unaligned::linear_connectivity": "fail",
        "unbuilt::linear_connectivity": "error",
    }
    planted = next(check for check in report["checks"] if check["pair"] == "planted")
    assert planted["value"] < 1e-6 < 0.05 < planted["naive"]
    a, aligned = load_file(real.path / "a.safetensors"), load_file(real.path / "out/planted-b-aligned.safetensors")
    assert a.keys() == aligned.keys()
    assert all(torch.equal(a[name], aligned[name]) for name in a)
    assert [path.name for path in (real.path / "out").glob("*-b-aligned.safetensors")] == [
        "planted-b-aligned.safetensors"
    ]
    assert report["environment"]["torch"] == torch.__version__
    lines = result.outlines
    for pair in ("torn", "unbuilt"):
        start = next(k for k, line in enumerate(lines) if f" {pair}: linear_connectivity " in line)
        assert "no such layer" in lines[start + 1] or "torn.safetensors: truncated or corrupt" in lines[start + 1]
        assert lines[start + 2].startswith(("____", "===="))
    start = next(k for k, line in enumerate(lines) if " unaligned: linear_connectivity " in line)
    told = [line.partition(":")[0] for line in lines[start + 6 : start + 9]]
    assert told == ["enough to fail", "put back", "samples"]
    assert lines[start + 9].startswith("try next: align = 'weight-matching'; or ")
    assert lines[start + 10] == "reproduce: pytest 'lmc.toml::unaligned::linear_connectivity'"
    assert lines[start + 11].startswith(("____", "===="))  # ten lines, and no log of torch's own below them
    result.stdout.no_fnmatch_line("*Traceback*")


def test_cuda_without_a_gpu_is_a_usage_error(real, monkeypatch):
    """Never a skip, never a silent fall-back to the CPU."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    result = real.runpytest_subprocess("--lmc-models", "--lmc-device=cuda", "-W", "error")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --lmc-device=cuda: *"])


def test_the_facade_runs_the_real_functions(real):
    """The example of the documentation, in an ordinary test."""
    real.makepyfile(
        """
def test_soup_ingredients(lmc):
    pair = lmc.load_pair("a.safetensors", "permuted.safetensors", model="models:mlp", data="data.safetensors")
    assert lmc.linear_connectivity(pair, limit=0.05).passed
    assert not lmc.linear_connectivity(pair, limit=0.05, align="none").passed
"""
    )
    real.runpytest_inprocess("-W", "error").assert_outcomes(passed=1)
