"""Mixtures of experts: the order of stacked experts is a symmetry where routing only looks up its own places."""

from __future__ import annotations

import pytest
import torch
from networks.registry import ALL, discovered
from torch import nn

import lmccheck
from lmccheck.errors import SymmetryError
from lmccheck.modules.runner import outputs_of


@pytest.mark.parametrize("how", ["scatter", "one_hot", "gather"])
def test_gate_and_experts_move_together(how: str) -> None:
    """By hand: gate rows, both stacked tensors and each expert's own hidden units; the outputs are the same."""
    module, inputs, spec = discovered(f"uncommon experts_routed_by_{how}")
    state = {name: tensor.double() for name, tensor in module.state_dict().items()}
    experts = spec.groups[0]
    assert experts.size == 4
    assert {(slot.tensor, slot.dim) for slot in experts.slots} >= {("g.weight", 0), ("g.bias", 0), ("w1", 0), ("w2", 0)}
    order, hidden = torch.tensor([2, 0, 3, 1]), torch.stack([torch.randperm(8) for _ in range(4)])
    moved = dict(state)
    moved["g.weight"], moved["g.bias"] = state["g.weight"][order], state["g.bias"][order]
    moved["w1"] = torch.stack([state["w1"][e][:, hidden[k]] for k, e in enumerate(order.tolist())])
    moved["w2"] = torch.stack([state["w2"][e][hidden[k]] for k, e in enumerate(order.tolist())])
    before, after = (outputs_of(module, theta, inputs, torch.float64)[0] for theta in (state, moved))
    assert torch.allclose(before, after, atol=1e-12)
    drawn = spec.apply(state, spec.random(1))
    assert not torch.equal(drawn["g.weight"], state["g.weight"])
    assert torch.allclose(before, outputs_of(module, drawn, inputs, torch.float64)[0], atol=1e-12)


def test_experts_that_are_told_apart_stay_in_order() -> None:
    """Where a number of the routing is read, and not only looked up by, the order is frozen and the reason said."""
    _, _, spec = discovered("uncommon experts_told_apart_by_number")
    frozen = {(f.tensor, f.dim): f.reason for f in spec.frozen}
    assert "the places of ranked values are read (aten.eq" in frozen["g.weight", 0]


def test_a_permuted_mixture_is_brought_back_expert_by_expert() -> None:
    """Weight matching finds a random order of experts and of each expert's units, to the last bit."""
    module, _, spec = discovered("uncommon experts_routed_by_scatter")
    torch.manual_seed(0)
    first = {name: torch.randn_like(tensor) for name, tensor in module.state_dict().items()}
    second = spec.apply(first, spec.random(4))
    data = torch.randn(30, 5), torch.randint(0, 2, (30,))
    pair = lmccheck.load_pair(first, second, model=ALL["uncommon experts_routed_by_scatter"].build()[0], data=data)
    found = lmccheck.align(pair)
    assert all(torch.equal(found.weights[name], tensor) for name, tensor in first.items())


class _Tied(nn.Module):
    """Scores are rounded, so that experts tie, and which of them is taken depends on its place."""

    def __init__(self) -> None:
        super().__init__()
        self.g, self.w = nn.Linear(3, 4), nn.Parameter(torch.randn(4, 3, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores = self.g(x).sign()
        values, places = scores.topk(1, -1)
        weights = torch.zeros_like(scores).scatter(-1, places, values)
        return torch.einsum("bd,edf,be->bf", x, self.w, weights)


def test_ties_that_are_settled_by_place_are_refused() -> None:
    """No order of experts is used that changes what the network computes: verification or the data show it."""
    module = _Tied()
    torch.manual_seed(1)
    states = [{n: torch.randn_like(t) for n, t in module.state_dict().items()} for _ in range(2)]
    data = torch.randn(40, 3), torch.randint(0, 2, (40,))
    pair = lmccheck.load_pair(*states, model=_Tied, data=data)
    with pytest.raises(SymmetryError):
        lmccheck.align(pair)
