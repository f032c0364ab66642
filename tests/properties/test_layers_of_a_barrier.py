"""A failing line says which layers carry its barrier: by what each costs that is moved to the worst point alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lmccheck
from lmccheck.evaluate.layerwise import MOST


class Squared(nn.Module):
    """x ↦ first²·x + second·x/10."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.first.weight**2 * x + self.second(x) / 10


ONE = torch.ones(4, 1)


def state(first: float, second: float) -> dict[str, Tensor]:
    return {"first.weight": torch.tensor([[first]]), "second.weight": torch.tensor([[second]])}


@pytest.mark.parametrize("turned", [False, True])
def test_the_layer_that_carries_the_barrier_is_named(turned: bool) -> None:
    """At t = ½ from (1, 0), first is 0 and costs (0 − 1)² = 1; second is .05 and costs .005²; from either end."""
    ends = [state(1.0, 0.0), state(-1.0, 0.1)]
    a, b = ends[::-1] if turned else ends
    pair = lmccheck.load_pair(a, b, model=Squared, data=(ONE, ONE), loss="mse", device="cpu")
    found = lmccheck.linear_connectivity(pair, align="none", points=5, profile="dev", limit=0.1)
    end = "b" if turned else "a"
    assert found.details["layers"]["from"] == end
    assert found.details["layers"]["costs"] == pytest.approx({"first": 1.0, "second": 0.005**2}, abs=1e-7)
    said = f"moved there from {end} alone, first costs 1 and second 2.5e-05 squared error"
    with pytest.raises(Exception, match=said):
        found.raise_for_verdict()
    assert said in repr(found)


def test_the_worst_pair_of_a_set_names_its_layers() -> None:
    """Of three models the pair that differs in the sign of first fails by it; the third is like the first."""
    models: list[Any] = [state(1.0, 0.0), state(-1.0, 0.1), state(1.0, 0.05)]
    group = lmccheck.load_set(models, model=Squared, data=(ONE, ONE), loss="mse", device="cpu")
    found = lmccheck.set_connectivity(group, align="none", points=3, limit=0.1)
    i, j = sorted(found.details["worst_pair"])
    second = {"model 0": 0.0, "model 1": 0.1, "model 2": 0.05}
    layers = found.details["layers"]
    other = j if layers["from"] == i else i
    half, start = (second[i] + second[j]) / 2, second[layers["from"]]
    assert "model 1" in (layers["from"], other)
    own = (1 + start / 10 - 1) ** 2
    assert layers["costs"]["first"] == pytest.approx((start / 10 - 1) ** 2 - own, abs=1e-6)
    assert layers["costs"]["second"] == pytest.approx((half / 10) ** 2 - own, abs=1e-6)
    with pytest.raises(Exception, match=f"moved there from {layers['from']} alone, first costs"):
        found.raise_for_verdict()


def test_a_pass_measures_no_layers() -> None:
    """What a layer costs is asked where a line fails only."""
    pair = lmccheck.load_pair(
        state(1.0, 0.0), state(1.0, 0.1), model=Squared, data=(ONE, ONE), loss="mse", device="cpu"
    )
    assert "layers" not in lmccheck.linear_connectivity(pair, align="none", points=5, limit=0.1).details


class Signs(nn.Module):
    """x ↦ x·∏ wᵢ: with every sign turned, as good."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(1, 1, bias=False) for _ in range(30))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def test_many_layers_are_moved_in_parts() -> None:
    """Of 30 layers at most twelve evaluations more are made, and every layer is in one of the parts."""
    a = {f"layers.{k}.weight": torch.ones(1, 1) for k in range(30)}
    pair = lmccheck.load_pair(a, {k: -v for k, v in a.items()}, model=Signs, data=(ONE, ONE), loss="mse", device="cpu")
    found = lmccheck.linear_connectivity(pair, align="none", points=3, profile="dev", limit=0.1)
    costs = found.details["layers"]["costs"]
    assert len(costs) == MOST
    assert next(iter(costs)).startswith("layers.0 to ")
    assert list(costs)[-1].endswith(" to layers.29")
    assert all(cost == pytest.approx(1.0) for cost in costs.values())  # each part alone makes the product 0
