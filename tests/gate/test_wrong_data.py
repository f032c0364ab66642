"""The gate on wrong data and on networks that know nothing: never green."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

pytestmark = pytest.mark.usefixtures("real_core")

MODELS = """
from torch import nn

def mlp():
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
"""

MANIFEST = """
schema = 1
[defaults]
model = "models:mlp"
data = "right.safetensors"

[pair.right]
a = "a.safetensors"
b = "b.safetensors"
check.linear_connectivity = { limit = 0.5, points = 3 }

[pair.shuffled]
a = "a.safetensors"
b = "b.safetensors"
data = "shuffled.safetensors"
check.linear_connectivity = { limit = 0.5, points = 3 }
check.any = { property = "linear_connectivity", limit = 0.5, points = 3, endpoints = "any" }

[pair.uncounted]
a = "a.safetensors"
b = "b.safetensors"
data = "uncounted.safetensors"
check.linear_connectivity = { limit = 0.5, points = 3 }

[pair.cast]
a = "a.safetensors"
b = "a-half.safetensors"
check.linear_connectivity = { limit = 0.5, points = 3, endpoints = "any" }
"""


def test_wrong_data_are_never_green(pytester: pytest.Pytester) -> None:
    """Shuffled labels are inconclusive unless any endpoints may do, nothing counted and twins are errors."""
    x = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    y = x[:, :3].argmax(1)
    first, last = torch.cat([torch.eye(4)[:3], -torch.eye(4)[:3]]), torch.cat([torch.eye(3), -torch.eye(3)], 1)
    for name, scale in (("a", 3.0), ("b", 2.0)):
        state = {"0.weight": scale * first, "0.bias": torch.zeros(6), "2.weight": last, "2.bias": torch.zeros(3)}
        save_file(state, pytester.path / f"{name}.safetensors")
        save_file({key: t.half() for key, t in state.items()}, pytester.path / f"{name}-half.safetensors")
    shuffled = y[torch.randperm(200, generator=torch.Generator().manual_seed(1))]
    for name, targets in (("right", y), ("shuffled", shuffled), ("uncounted", torch.full_like(y, -100))):
        save_file({"inputs": x, "targets": targets}, pytester.path / f"{name}.safetensors")
    pytester.makepyfile(models=MODELS)
    (pytester.path / "lmc.toml").write_text(MANIFEST)
    result = pytester.runpytest_inprocess("--lmc-models", "--lmc-report-json=report.json")
    checks = {
        f"{check['pair']}::{check['check']}": check
        for check in json.loads((pytester.path / "report.json").read_text())["checks"]
        if check["pair"]
    }
    assert {name: check["verdict"] for name, check in checks.items()} == {
        "right::linear_connectivity": "pass",
        "shuffled::linear_connectivity": "inconclusive",
        "shuffled::any": "pass",
        "uncounted::linear_connectivity": "error",
        "cast::linear_connectivity": "error",
    }
    assert result.ret == 1
    result.stdout.fnmatch_lines_random(
        [
            "shuffled: a answers no better than the class frequencies (* nats, * % errors, majority * %), nor does b *",
            "data *uncounted.safetensors: nothing is counted: *",
            "pair cast: *a.safetensors and *a-half.safetensors hold the same weights, expected two networks; *",
        ]
    )
