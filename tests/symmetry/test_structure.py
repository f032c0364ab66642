"""The structure of a traced network: found once, refused with its reason, single units among its groups."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lmccheck.errors import UnsupportedArchitecture
from lmccheck.symmetry.discover import derive, structure_of
from lmccheck.symmetry.structure import Canonical


class Narrow(nn.Module):
    """4 → 1 → 3, with one op between."""

    def __init__(self, op: str) -> None:
        super().__init__()
        self.op, self.first, self.last = op, nn.Linear(4, 1), nn.Linear(1, 3)
        self.low = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.last(torch.clamp(h, min=self.low) if self.op == "clamp" else getattr(torch, self.op)(h))


def test_the_structure_is_found_once() -> None:
    """A traced network keeps it; a function that says what it is for returns the same."""
    traced = derive(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)), (torch.zeros(2, 2),))
    assert traced.structure is structure_of(traced, "a test")
    assert traced.structure.head == ("2.weight", "2.bias")


def test_a_network_without_structure_says_for_what_and_why() -> None:
    """The reason stands by itself, or behind what the structure was wanted for."""
    traced = derive(nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.Linear(3, 1)), (torch.zeros(2, 2),))
    with pytest.raises(UnsupportedArchitecture, match=r"^units of group '0' cannot be dropped one by one"):
        _ = traced.structure
    with pytest.raises(UnsupportedArchitecture, match=r"^a test: units of group '0' cannot be dropped one by one"):
        structure_of(traced, "a test")


@pytest.mark.parametrize("op", ["relu", "square", "neg", "log1p"])
def test_a_single_unit_is_followed_through_functions_of_it_alone(op: str) -> None:
    """Its incoming numbers are the layer's, its outgoing ones the next layer's column."""
    structure = derive(Narrow(op).eval(), (torch.rand(2, 4),)).structure
    assert (structure.groups, structure.sizes) == (("first",), {"first": 1})
    assert (set(structure.rows), set(structure.columns)) == ({"first.weight", "first.bias"}, {"last.weight"})


def test_a_single_unit_is_not_followed_past_another_tensor() -> None:
    """What else an op takes might be anything, so the unit is none that could be dropped."""
    with pytest.raises(UnsupportedArchitecture, match="no hidden units that may be dropped"):
        _ = derive(Narrow("clamp").eval(), (torch.rand(2, 4),)).structure


class Attending(nn.Module):
    """A residual attention block that computes its averaged weights or not, and reads only the states."""

    def __init__(self, weights: bool) -> None:
        super().__init__()
        self.weights, self.attention = weights, nn.MultiheadAttention(8, 2, batch_first=True)
        self.first, self.last = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last((x + self.attention(x, x, x, need_weights=self.weights)[0]).mean(1))


def test_what_no_output_reads_binds_nothing() -> None:
    """Attention's default averages its weights over heads; where nobody reads them, heads are as free as without."""
    read, unread = (derive(Attending(w).eval(), (torch.rand(2, 4, 5),)).droppable for w in (False, True))
    assert (unread.groups, unread.sizes, unread.whole) == (read.groups, read.sizes, read.whole)
    assert "attention/0" in unread.groups


def test_weights_in_float64_are_made_as_they_are_asked_for() -> None:
    """By their canonical names, one for tied tensors; integer tensors as they are; a dict of them is the same."""
    net = nn.Sequential(
        nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3), nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)
    )
    net[2].weight = net[0].weight
    structure = derive(net.eval(), (torch.rand(2, 3),)).droppable
    weights = net.state_dict()
    lazy = Canonical(structure, weights)
    assert list(lazy) == [name for name in weights if name != "2.weight"]
    assert len(lazy) == len(weights) - 1
    assert lazy["0.weight"].dtype == torch.float64
    assert lazy["0.weight"] is not lazy["0.weight"]
    assert lazy["4.num_batches_tracked"] is weights["4.num_batches_tracked"]
    for name, tensor in structure.canonical(weights).items():
        assert torch.equal(tensor, lazy[name])
    stored = structure.stored(lazy)
    assert stored.keys() == weights.keys()
    assert stored["2.weight"] is stored["0.weight"]
