"""The gate on the real core: sets, and pairs of two widths, whose verdicts are known beforehand."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.usefixtures("real_core")

MODELS = """
from torch import nn

def mlp(width=12):
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 3))

def narrow():
    return mlp(6)
"""

MANIFEST = """
schema = 1
[defaults]
model = "models:mlp"
data = "data.safetensors"
loss = "mse"

[set.planted]
models = ["a.safetensors", "b.safetensors", "c.safetensors"]
check.set_connectivity = { endpoints = "any", limit = 1e-6, method = "reference", reference = 1, points = 3 }

[set.torn]
models = ["a.safetensors", "torn.safetensors", "c.safetensors"]
check.set_connectivity = { endpoints = "any", limit = 0.01 }

[set.strange]
models = ["a.safetensors", "b.safetensors", "stranger.safetensors"]
check.set_connectivity = { endpoints = "any", limit = 0.01 }

[pair.halved]
a = "a.safetensors"
b = "narrow.safetensors"
model_b = "models:narrow"
check.fused_connectivity = { endpoints = "any", norm = "weights", limit = 1e-6 }

[pair.stranger]
a = "a.safetensors"
b = "other-narrow.safetensors"
model_b = "models:narrow"
check.fused_connectivity = { endpoints = "any", norm = "weights", limit = 0.01, points = 5 }

[pair.confused]
a = "a.safetensors"
b = "narrow.safetensors"
model_b = "models:mlp"
check.fused_connectivity = { endpoints = "any", norm = "weights", limit = 0.01 }
"""


def network(generator, width=12):
    return {
        "0.weight": 3 * torch.randn(width, 6, generator=generator),
        "0.bias": torch.randn(width, generator=generator),
        "2.weight": 3 * torch.randn(3, width, generator=generator),
        "2.bias": torch.randn(3, generator=generator),
    }


def shuffled(weights, order):
    moved = {"0.weight": weights["0.weight"][order], "0.bias": weights["0.bias"][order]}
    return {**weights, **moved, "2.weight": weights["2.weight"][:, order].contiguous()}


def rescaled(weights):
    """The same function by units of other sizes, which no permutation makes those of the first."""
    sizes = torch.logspace(-1, 1, len(weights["0.bias"]))
    incoming = {"0.weight": sizes[:, None] * weights["0.weight"], "0.bias": sizes * weights["0.bias"]}
    return {**weights, **incoming, "2.weight": weights["2.weight"] / sizes}


@pytest.fixture
def gate(tmp_path):
    """A narrow network, the same one with every unit split in two, shuffles of that, and strangers; and a manifest."""
    folder = tmp_path
    generator = torch.Generator().manual_seed(0)
    narrow = network(generator, 6)
    twice = torch.arange(6).repeat(2)
    a = {**shuffled(narrow, twice), "2.weight": (narrow["2.weight"] / 2)[:, twice].contiguous()}
    inputs = torch.randn(40, 6, generator=generator)
    hidden = torch.relu(inputs @ narrow["0.weight"].T + narrow["0.bias"])
    save_file(a, folder / "a.safetensors", {"made": "a"})
    for name in "bc":
        save_file(shuffled(a, torch.randperm(12, generator=generator)), folder / f"{name}.safetensors", {"made": name})
    save_file(rescaled(a), folder / "stranger.safetensors")
    save_file(shuffled(narrow, torch.randperm(6, generator=generator)), folder / "narrow.safetensors", {"made": "n"})
    save_file(rescaled(narrow), folder / "other-narrow.safetensors")
    (folder / "torn.safetensors").write_bytes((folder / "b.safetensors").read_bytes()[:-9])
    targets = hidden @ narrow["2.weight"].T + narrow["2.bias"]  # so that every network here has loss 0
    save_file({"inputs": inputs, "targets": targets}, folder / "data.safetensors")
    (folder / "models.py").write_text(MODELS)
    (folder / "lmc.toml").write_text(MANIFEST)
    return folder


def test_the_gate_measures_real_sets_and_widths(gate, pytester, monkeypatch):
    """Planted shuffles pass and are written as one network; strangers fail; what cannot be loaded is one line."""
    monkeypatch.chdir(gate)
    result = pytester.runpytest_inprocess(
        f"--rootdir={gate}", str(gate / "lmc.toml"), "--lmc-report-json=report.json", "--lmc-aligned-dir=out",
        "-W", "error", "-p", "no:cacheprovider",
    )  # fmt: skip
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    report = json.loads((gate / "report.json").read_text())
    checks = {check["pair"] or "manifest": check for check in report["checks"]}
    assert {name: check["verdict"] for name, check in checks.items()} == {
        "manifest": "error",
        "planted": "pass",
        "torn": "error",
        "strange": "fail",
        "halved": "pass",
        "stranger": "fail",
        "confused": "error",
    }
    assert checks["planted"]["value"] < 1e-6 < checks["planted"]["naive"]
    assert checks["planted"]["seed"] != checks["strange"]["seed"]
    assert "stranger" in checks["strange"]["details"]["worst_pair"]
    assert "torn.safetensors: truncated or corrupt" in checks["torn"]["message"]
    for check, lines in (("strange", 10), ("stranger", 7), ("torn", 1), ("confused", 1)):
        assert len(checks[check]["message"].splitlines()) == lines
    assert {entry["name"]: sorted(entry["files"]) for entry in report["sets"]}["planted"] == ["a", "b", "c"]

    b = load_file(gate / "b.safetensors")
    for name in "abc":
        path = gate / "out" / "planted" / f"{name}-aligned.safetensors"
        aligned = load_file(path)
        assert all(torch.equal(aligned[key], b[key]) for key in b)  # the reference's frame
        with safe_open(path, "pt") as file:
            assert file.metadata() == {"made": name}
        assert path.with_name(f"{name}-aligned.permutation.safetensors").exists()
    fused = load_file(gate / "out" / "halved-b-fused.safetensors")
    assert fused["0.weight"].shape == (12, 6)
    assert sorted(path.name for path in (gate / "out").iterdir()) == ["halved-b-fused.safetensors", "planted"]
