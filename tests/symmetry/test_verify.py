"""A wrong spec is caught, whatever hides it, and a verification that would mean nothing is refused."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from networks import NETWORKS, Written
from networks.registry import discovered
from torch import nn

import lmccheck
from lmccheck.errors import SymmetryError
from lmccheck.symmetry import verify
from lmccheck.symmetry.slots import Part, Piece


@pytest.mark.parametrize("name", ["mlp", "vgg", "encoder_chunk"])
def test_a_wrong_spec_is_caught(name: str) -> None:
    """Dropping any single slot from a correct spec makes verification fail."""
    module, inputs, spec = discovered(name)
    for tensor, dims in spec.layouts.items():
        for dim in dims:
            kept = {d: pieces for d, pieces in dims.items() if d != dim}
            broken = dataclasses.replace(spec, layouts={**spec.layouts, tensor: kept})
            assert broken.verify(module, inputs) > 1e-6, f"{tensor} dimension {dim}"
    with pytest.raises(SymmetryError, match="changes the output"):
        verify.require(broken, module, inputs)


def test_a_head_blind_permutation_is_caught() -> None:
    """Permuting the fused attention width as if heads did not exist changes the function, and verification says so."""
    module, inputs, spec = discovered("encoder_separate")
    name = "1.0.body.1"
    whole = (Piece(0, (Part("blind", 8, 1),)),)
    layouts = {f"{name}.{p}": {0: whole} for p in ("q.weight", "q.bias", "k.weight")}
    group = lmccheck.UnitGroup("blind", 8, ())
    blind = dataclasses.replace(spec, groups=(group,), layouts=layouts)
    assert blind.verify(module, inputs) > 1e-6


def test_zero_initialised_heads_do_not_hide_an_error() -> None:
    """With a zero head every spec would pass on the fresh weights; randomised weights still catch a wrong one."""
    module, inputs, spec = discovered("vision_transformer")
    layouts = {k: v for k, v in spec.layouts.items() if k != "norm.weight"}
    broken = dataclasses.replace(spec, layouts=layouts)
    fresh = {k: v.double() for k, v in module.state_dict().items()}
    assert broken.verify(module, inputs, weights=fresh) == 0.0
    assert broken.verify(module, inputs) > 1e-6


def test_wrong_permutations_are_refused() -> None:
    """Missing groups, wrong shapes and repeated units are errors, not silent gathers."""
    module, _, spec = discovered("mlp")
    weights = module.state_dict()
    with pytest.raises(SymmetryError, match="missing groups"):
        spec.apply(weights, {})
    with pytest.raises(SymmetryError, match="shape"):
        spec.apply(weights, {**spec.identity(), "0": torch.arange(3)})
    with pytest.raises(SymmetryError, match="not a permutation"):
        spec.apply(weights, {**spec.identity(), "0": torch.zeros(7, dtype=torch.int64)})
    with pytest.raises(SymmetryError, match=r"tensor 0\.weight"):
        spec.apply({**weights, "0.weight": torch.zeros(2, 2)}, spec.identity())


def test_verification_that_would_mean_nothing_is_refused() -> None:
    """Another network, no trial, missing weights: an error, not a deviation of zero."""
    module, inputs, spec = discovered("mlp")
    other, _ = NETWORKS["vgg"]()
    with pytest.raises(SymmetryError, match="another network"):
        spec.verify(other, inputs)
    with pytest.raises(SymmetryError, match="trials"):
        spec.verify(module, inputs, trials=0)
    with pytest.raises(SymmetryError, match="not in the weights"):
        spec.verify(module, inputs, weights={})


def test_a_tiny_network_that_is_often_dead_is_still_verified() -> None:
    """Two ReLU units are dead for many draws; that is no proof that the weights do not matter."""
    for seed in range(40):
        torch.manual_seed(seed)
        module = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1, bias=False))
        inputs = (torch.tensor([[-1.0, -1.0], [-0.9, -1.0]]),)
        assert lmccheck.discover_symmetry(module, inputs).verify(module, inputs, trials=2) <= 1e-9


def test_an_output_that_becomes_nan_is_a_deviation() -> None:
    """A wrong spec that turns a finite output into NaN is infinitely wrong, not right."""

    def only_in_order(s: Written, x: torch.Tensor) -> torch.Tensor:
        return s.head(x) * (1 + (s.order.diff().min() + 1e-9).log().clamp(-1, 1) * 0).sum()

    module = Written(only_in_order, order=nn.Parameter(torch.arange(4.0)), head=nn.Linear(4, 2))
    inputs = (torch.randn(2, 4),)
    weights = {name: tensor.double() for name, tensor in module.state_dict().items()}
    wrong = [{"name": "order", "size": 4, "slots": [{"tensor": "order"}]}]
    spec = lmccheck.spec_from_groups(module, wrong)
    assert spec.verify(module, inputs, weights=weights) == float("inf")


def test_logits_of_classes_that_are_ruled_out_hide_nothing() -> None:
    """−∞ before and after is the same: the derived spec verifies, a wrong one changes the classes that are left."""

    def run(s: Written, x: torch.Tensor) -> torch.Tensor:
        return s.second(torch.tanh(s.first(x))).masked_fill(torch.arange(3) == 2, -torch.inf)

    module = Written(run, first=nn.Linear(4, 6), second=nn.Linear(6, 3))
    inputs = (torch.randn(5, 4, generator=torch.Generator().manual_seed(0)),)
    spec = lmccheck.discover_symmetry(module, inputs)
    assert [group.size for group in spec.groups] == [6]
    assert spec.verify(module, inputs) <= 1e-9
    wrong = [{"name": "h", "size": 6, "slots": [{"tensor": "first.weight"}, {"tensor": "first.bias"}]}]
    assert lmccheck.spec_from_groups(module, wrong).verify(module, inputs) > 1e-3
    nothing = Written(lambda s, x: run(s, x).masked_fill(x.sum() > -1e9, -torch.inf), **dict(module.named_children()))
    with pytest.raises(SymmetryError, match="−∞ all over"):
        spec.verify(nothing, inputs)


def test_a_class_that_is_no_longer_ruled_out_is_a_deviation() -> None:
    """−∞ before and a number after are as far apart as can be, as the other way round."""
    for ordered in (True, False):

        def run(s: Written, x: torch.Tensor, ordered: bool = ordered) -> torch.Tensor:
            ruled_out = (s.order.diff().min() > 0) == ordered
            return s.head(x).masked_fill(ruled_out & (torch.arange(2) == 1), -torch.inf)

        module = Written(run, order=nn.Parameter(torch.arange(4.0)), head=nn.Linear(4, 2))
        weights = {name: tensor.double() for name, tensor in module.state_dict().items()}
        wrong = [{"name": "order", "size": 4, "slots": [{"tensor": "order"}]}]
        spec = lmccheck.spec_from_groups(module, wrong)
        assert spec.verify(module, (torch.randn(2, 4),), weights=weights) == float("inf")
