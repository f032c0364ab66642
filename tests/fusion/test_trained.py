"""Trained networks of two widths: fusion beats random merging, and its damage counts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from networks import Written
from networks.widths import NORMS, Weights
from safetensors.torch import load_file
from torch import nn

import lmccheck
from lmccheck.alignment.matching.layerwise import transport_plan
from lmccheck.evaluate.line import chord
from lmccheck.fusion.carrier import Carrier
from lmccheck.modules.runner import outputs_of

# trained networks


FIXTURES = Path(__file__).parents[2] / "fixtures"


def perceptron(width: int) -> nn.Module:
    """64-width-width-10 with ReLU."""
    parts = {"hidden1": nn.Linear(64, width), "hidden2": nn.Linear(width, width), "head": nn.Linear(width, 10)}
    return Written(lambda s, x: s.head(F.relu(s.hidden2(F.relu(s.hidden1(x))))), **parts)


@pytest.fixture(scope="module")
def digits() -> dict[str, Any]:
    """MLPs of widths 64 and 128 on scikit-learn's digits, and the data."""
    train, test = (load_file(FIXTURES / f"digits-{part}.safetensors") for part in ("train", "test"))
    found: dict[str, Any] = {
        "data": (test["inputs"], test["targets"]),
        "calibration": (train["inputs"], train["targets"]),
    }
    for width in (64, 128):
        torch.manual_seed(width)
        net = perceptron(width)
        optimiser = torch.optim.Adam(net.parameters(), 1e-3)
        for _ in range(25):
            for chosen in torch.randperm(len(train["inputs"])).split(64):
                optimiser.zero_grad()
                F.cross_entropy(net(train["inputs"][chosen]), train["targets"][chosen]).backward()
                optimiser.step()
        found[str(width)] = {name: value.detach().clone() for name, value in net.state_dict().items()}
    return found


def arguments(digits: dict[str, Any], a: int, b: int) -> tuple[Weights, Weights, dict[str, Any]]:
    given = {"data": digits["data"], "calibration": digits["calibration"]}
    models = {"model_a": lambda: perceptron(a), "model_b": lambda: perceptron(b)}
    return digits[str(a)], digits[str(b)], {**given, **models}


def at_random(digits: dict[str, Any], a: int, b: int, seed: int) -> Weights:
    """θ_B at A's width, its units assigned without a look at them."""
    inputs = (digits["data"][0][:2],)
    carrier = Carrier(*(lmccheck.discover_symmetry(perceptron(width), inputs) for width in (a, b)))
    generator = torch.Generator().manual_seed(seed)
    for group in carrier.a.groups:
        carrier.place(group.name, transport_plan(torch.rand(a, b, generator=generator)))
    return carrier.carry(digits[str(b)])


def loss_of(digits: dict[str, Any], width: int, weights: Weights) -> float:
    outputs = outputs_of(perceptron(width), weights, (digits["data"][0],), torch.float32)[0]
    return float(F.cross_entropy(outputs, digits["data"][1]))


@pytest.mark.parametrize("norm", NORMS)
def test_a_wide_network_fused_into_a_narrow_one_beats_random_merging(digits: dict[str, Any], norm: str) -> None:
    """Trained widths 128 -> 64: far better than units merged at random, still not the same function."""
    a, b, given = arguments(digits, 64, 128)
    found = lmccheck.fuse(a, b, norm=norm, **given)
    random = [loss_of(digits, 64, at_random(digits, 64, 128, seed)) for seed in range(3)]
    assert found.loss_fused == pytest.approx(loss_of(digits, 64, found.weights), rel=1e-5)
    assert found.loss_b == pytest.approx(loss_of(digits, 128, b), rel=1e-5)
    assert found.loss_fused < 0.6 * min(random)
    assert not found.function_preserving


def test_a_narrow_network_fused_into_a_wide_one_lies_nearer(digits: dict[str, Any]) -> None:
    """Trained widths 64 -> 128: the function stays, and the midpoint is better than that of a random splitting."""
    a, b, given = arguments(digits, 128, 64)
    result = lmccheck.fused_connectivity(a, b, limit=10.0, points=5, **given)
    assert result.passed
    assert result.details["function_preserving"]
    assert result.details["losses"][-1] == pytest.approx(result.details["loss_b"], abs=1e-5)
    midpoint = result.details["losses"][result.details["t"].index(0.5)]
    random = []
    for seed in range(3):
        split = at_random(digits, 128, 64, seed)
        random.append(loss_of(digits, 128, {name: (a[name] + split[name]) / 2 for name in a}))
    assert midpoint < min(random)


# the property


def test_damage_by_fusion_counts_against_the_chord(digits: dict[str, Any]) -> None:
    """The chord ends at B's own loss: what fusion alone costs is the height at t = 1, and fails."""
    a, b, given = arguments(digits, 64, 128)
    result = lmccheck.fused_connectivity(a, b, limit=0.01, points=5, **given)
    details = result.details
    assert result.verdict == "fail"
    assert result.property == "fused_connectivity"
    assert details["loss_a"] == pytest.approx(loss_of(digits, 64, a), rel=1e-5)
    assert details["loss_b"] == pytest.approx(loss_of(digits, 128, b), rel=1e-5)
    assert details["t"][-1] == 1.0
    assert details["losses"][-1] == pytest.approx(details["loss_fused"], rel=1e-6)
    heights = [
        loss - chord(t, details["loss_a"], details["loss_b"])
        for t, loss in zip(details["t"], details["losses"], strict=True)
    ]
    assert result.value == max(heights) == details["barrier"]
    assert result.value >= details["loss_fused"] - details["loss_b"] > 0.01
    assert "not the same function" in details["notes"][0]
    assert details["function_preserving"] is False
    assert len(details["failure"]) == 5
    assert isinstance(result.witness, lmccheck.Fusion)
    json.dumps(details)
    t = details["t"].index(0.5)
    half = {name: (a[name] + result.witness.weights[name]) / 2 for name in a}
    assert details["losses"][t] == pytest.approx(loss_of(digits, 64, half), rel=1e-4)
