"""A permuted copy of a network is no second network, and a count of steps makes none: both are said."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import lmccheck
from lmccheck.network.endpoint import same_weights

X = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
Y = torch.randint(0, 2, (40,), generator=torch.Generator().manual_seed(1))
TURN = torch.tensor([2, 0, 3, 1, 5, 4])


def build() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2))


def weights() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return {name: torch.randn(t.shape, generator=generator) for name, t in build().state_dict().items()}


def notes(b: dict[str, Tensor]) -> list[str]:
    pair = lmccheck.load_pair(weights(), b, model=build, data=(X, Y), device="cpu")
    found: list[str] = lmccheck.linear_connectivity(pair, limit=0.1, points=3).details["notes"]
    return found


def test_a_permuted_copy_is_said() -> None:
    """b's hidden units are a's in another order: a barrier of 0 is no news; one number changed, and it is."""
    a = weights()
    b = {"0.weight": a["0.weight"][TURN], "0.bias": a["0.bias"][TURN], "2.weight": a["2.weight"][:, TURN]}
    b["2.bias"] = a["2.bias"]
    assert any("b is a permuted copy of a" in note for note in notes(b))
    assert not any("permuted copy" in note for note in notes({**b, "2.bias": a["2.bias"] + 1e-3}))


class Stepping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 2)
        self.register_buffer("steps", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x)
        return out


def test_a_counter_makes_no_other_network() -> None:
    """Two files that differ in how many steps were counted hold the same weights; another table does not."""
    own = {"inner.weight": torch.ones(2, 3), "inner.bias": torch.zeros(2), "steps": torch.tensor(5)}
    pair = lmccheck.load_pair(own, {**own, "steps": torch.tensor(9)}, model=Stepping, data=(X, Y), device="cpu")
    assert same_weights(pair.a, pair.b)
    assert any("a and b are identical" in n for n in lmccheck.linear_connectivity(pair, limit=0.1).details["notes"])
