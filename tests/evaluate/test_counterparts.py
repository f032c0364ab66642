"""Values are those of the node that is meant, though batches of another shape name nodes otherwise."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lmccheck
from lmccheck.alignment.matching.activation_norm import second_moments
from lmccheck.evaluate.graph import GraphRunner
from lmccheck.evaluate.output_moments import output_moments
from lmccheck.evaluate.repair import Repair
from lmccheck.evaluate.sensitivity import sensitivities

WIDTH = 6  # of the inputs, too: another node's value has the right shape


class Net(nn.Module):
    """Three layers; ``shifts``: of more than two samples relu and linear ops precede them, that change nothing."""

    def __init__(self, shifts: bool, normed: bool = False, again: bool = False) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)
        self.norm = nn.BatchNorm1d(WIDTH) if normed else nn.Identity()
        self.shifts, self.again = shifts, again

    def forward(self, x: Tensor) -> Tensor:
        if self.shifts and len(x) > 2:
            x = F.linear(torch.relu(x) - torch.relu(-x), torch.eye(WIDTH, dtype=x.dtype))
        h = torch.relu(self.norm(self.one(x)))
        if self.again and len(x) > 2:
            h = torch.relu(self.norm(self.one(h)))
        out: Tensor = self.three(torch.relu(self.two(h)))
        return out


def pair_of(build: Any) -> lmccheck.ModelPair:
    torch.manual_seed(0)
    states = [{k: v.double() if v.is_floating_point() else v for k, v in build().state_dict().items()} for _ in "ab"]
    data = torch.randn(40, WIDTH).double(), torch.randint(0, 3, (40,))
    return lmccheck.load_pair(*states, model=build().double(), data=data, calibration=data, device="cpu")


def test_shifted_names_are_those_of_the_nodes_meant() -> None:
    """Layers, what they read, and outputs of ops without weights; by an own forward pass."""
    pair = pair_of(lambda: Net(True))
    traced = pair.network.traced
    assert traced is not None
    x, seen = pair.data.batches[0].inputs, {}
    graph = GraphRunner.of(pair.network, torch.float64, traced.trace)
    graph.run(pair.theta_a, x, ["linear", "relu", "linear_1", "relu_1"], seen.__setitem__, "test")
    a = pair.theta_a
    one = x @ a["one.weight"].T + a["one.bias"]
    two = one.relu() @ a["two.weight"].T + a["two.bias"]
    for name, expected in {"linear": one, "relu": one.relu(), "linear_1": two, "relu_1": two.relu()}.items():
        torch.testing.assert_close(seen[name], expected, atol=1e-12, rtol=0)
    felt = sensitivities(graph, pair.theta_a, x, ["linear_1"], 3, "test")["linear_1"]
    direction = torch.randn(len(x), 3, generator=torch.Generator().manual_seed(3)).double()
    torch.testing.assert_close(felt, direction @ a["three.weight"] * (two > 0), atol=1e-12, rtol=0)


@pytest.mark.parametrize("normed", [False, True])
def test_what_is_measured_does_not_depend_on_names(normed: bool) -> None:
    """Moments, REPAIR, activation matching and refits give what they give for the network whose names stay."""

    def measured(shifts: bool) -> dict[str, Any]:
        pair = pair_of(lambda: Net(shifts, normed))
        traced, data = pair.network.traced, pair.calibration
        assert traced is not None
        assert data is not None
        merged = {k: (v + pair.theta_b[k]) / 2 if v.is_floating_point() else v for k, v in pair.theta_a.items()}
        repaired = Repair(pair.network, traced, pair.theta_a, pair.theta_b)(merged, 0.5)
        matched = lmccheck.align(pair, method="activation-matching").permutation
        names = {"profile": "dev", "epsilon": 100.0}
        dropped, noisy = lmccheck.dropout_stability(pair, **names), lmccheck.noise_stability(pair, masks=1, **names)
        return {
            "read": list(second_moments(pair.a, traced, data).moments.values()),
            "made": list(output_moments(pair.a, traced.trace, traced.layers, data)[0].values()),
            "repaired": repaired,
            "matched": matched,
            "dropped": dropped.value,
            "noise": noisy.value,
        }

    expected, found = measured(False), measured(True)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, atol=1e-9, rtol=0, msg=lambda said, key=key: f"{key}: {said}")


def test_a_layer_that_is_run_more_often_is_refused() -> None:
    """Which of its runs is meant cannot be said; nor what behind it is known by no weight."""
    pair = pair_of(lambda: Net(True, again=True))
    traced = pair.network.traced
    assert traced is not None
    graph = GraphRunner.of(pair.network, torch.float64, traced.trace)
    x = pair.data.batches[0].inputs
    for name in ("linear", "nothing"):
        with pytest.raises(lmccheck.UnsupportedArchitecture, match=rf"^test: the network computes .*{name}.*; mend: "):
            graph.run(pair.theta_a, x, [name], lambda name, value: None, "test")
    seen: dict[str, Tensor] = {}
    graph.run(pair.theta_a, x, ["relu", "linear_1"], seen.__setitem__, "test")
    a = pair.theta_a
    h = F.linear(F.linear(x, a["one.weight"], a["one.bias"]).relu(), a["one.weight"], a["one.bias"]).relu()
    torch.testing.assert_close(seen["relu"], h, atol=1e-12, rtol=0)  # what the next layer reads
    with pytest.raises(lmccheck.UnsupportedArchitecture, match=r"'linear', which takes 'one.weight', 'one.bias'"):
        Repair(pair.network, traced, pair.theta_a, pair.theta_b)
